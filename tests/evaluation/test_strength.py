import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation import strength as module
from persona_lens.evaluation.predictions import Predictions
from persona_lens.models import TokenSpans
from persona_lens.models.hooks.positions import PositionedHook
from tests.backends import BACKENDS
from tests.interventions.test_steering import make_vector

SHORT = pl.Sampling(max_new_tokens=6)


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vector(model):
    return make_vector(model)


def test_calibration_reaches_the_target_on_what_it_was_chosen_on(model, vector):
    questions = [f"What is {i}?" for i in range(8)]
    strength = pl.calibrate(model, vector, layer=1, target_kl=0.05, questions=questions, sampling=SHORT)
    assert strength.coefficient > 0
    assert (strength.n_responses, strength.n_held_out) == (4, 4)
    assert strength.chosen_kl == pytest.approx(0.05, rel=0.05)
    assert 0.005 < strength.kl.estimate < 0.5
    stronger = pl.calibrate(model, vector, layer=1, target_kl=0.5, questions=questions, sampling=SHORT)
    assert stronger.coefficient > strength.coefficient
    assert stronger.kl.estimate > strength.kl.estimate


def test_calibration_refuses_what_cannot_be_reached(model, vector):
    with pytest.raises(InvalidArgumentError, match="target_kl"):
        pl.calibrate(model, vector, layer=1, target_kl=0.0)
    with pytest.raises(InvalidArgumentError, match="at least 4"):
        pl.calibrate(
            model,
            vector,
            layer=1,
            target_kl=0.1,
            questions=["Why?", "When?", "Who?"],
            sampling=pl.Sampling(max_new_tokens=2),
        )
    with pytest.raises(InvalidArgumentError, match="at most 1,000"):
        pl.calibrate(
            model, vector, layer=1, target_kl=1e6, questions=list("abcd"), sampling=pl.Sampling(max_new_tokens=2)
        )


@pytest.fixture
def made_up(monkeypatch):
    """A model whose divergence is a function of the coefficient, and twice that on the responses held out."""
    spans = [TokenSpans((256, 7, i), 2, 3) for i in range(7)]
    asked = []

    def use(cost):
        def measure(model, some, make_hooks, *, batch_size, compare):
            ((_, hook),) = [pair for pair in make_hooks(some) if isinstance(pair[1], PositionedHook)]
            assert hook.positions.prompt_length == [2] * len(some)
            asked.append(tuple(some))
            kl = cost(hook.operations[0].coefficient) * (1 if some[0] is spans[0] else 2)
            n_tokens = torch.full((len(some),), 4.0, dtype=torch.float64)
            return Predictions(torch.zeros_like(n_tokens), kl * n_tokens, n_tokens)

        monkeypatch.setattr(module, "sample_ordinary_spans", lambda *_: spans)
        monkeypatch.setattr(module, "measure_predictions", measure)
        return spans, asked

    return use


def test_what_a_calibrated_coefficient_costs_is_measured_on_responses_it_was_not_chosen_on(tiny_model, made_up):
    spans, asked = made_up(lambda coefficient: coefficient**2)
    strength = pl.calibrate(tiny_model, make_vector(tiny_model), layer=1, target_kl=0.09, tolerance=0.01)
    assert strength.coefficient == pytest.approx(0.3, rel=0.01)
    assert strength.chosen_kl == pytest.approx(0.09, rel=0.01)
    assert strength.kl.estimate == pytest.approx(0.18, rel=0.02)
    assert (strength.n_responses, strength.n_held_out) == (4, 3)
    assert not set(asked[0]) & set(asked[-1])
    assert {*asked[0], *asked[-1]} == set(spans)


def test_a_coefficient_that_misses_the_target_is_not_returned_as_if_it_had_met_it(tiny_model, made_up):
    made_up(lambda coefficient: float(coefficient > 0.5))  # jumps over the target
    with pytest.raises(InvalidArgumentError, match="tolerance"):
        pl.calibrate(tiny_model, make_vector(tiny_model), layer=1, target_kl=0.09)
