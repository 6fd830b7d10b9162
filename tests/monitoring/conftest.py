import pytest

import persona_lens as pl
from persona_lens.monitoring import PersonaMonitor
from tests.backends import BACKENDS
from tests.interventions.test_steering import make_vector
from tests.monitoring.examples import LAYERS, ORDINARY, make_graded


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vectors(model):
    return {"loud": make_vector(model), "shy": make_vector(model, 1, "shy")}


@pytest.fixture(scope="module")
def graded(vectors):
    return {"loud": make_graded(vectors["loud"]), "shy": make_graded(vectors["shy"], 2, within=0.0)}


@pytest.fixture(scope="module")
def monitor(model, vectors, graded):
    return PersonaMonitor.calibrate(
        model, vectors, LAYERS, ordinary=ORDINARY, graded=graded, quantiles=(0.5, 0.9), responses=None
    )
