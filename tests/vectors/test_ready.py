import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError
from persona_lens.reproduction.arguments import COMPARED_TRAITS
from tests.backends import BACKENDS

FIGURES = Path(__file__).resolve().parents[2] / "figures"


@pytest.fixture(scope="module")
def embedded(embedded_model):
    return embedded_model


def test_a_vector_of_every_trait_whose_steering_was_measured_comes_with_the_package():
    measured = {path.stem.removeprefix("steering_evidence_") for path in FIGURES.glob("steering_evidence_*.json")}
    assert set(pl.vectors.list_ready_vectors()) == measured >= set(COMPARED_TRAITS)


@pytest.mark.parametrize("trait", pl.vectors.list_ready_vectors())
def test_it_says_where_it_is_from_how_to_use_it_and_how_well_it_did(trait):
    vector = pl.load_vector(trait)
    setting = vector.provenance["setting"]
    assert vector.trait == trait
    assert 0 <= setting["layer"] < vector.model.n_layers
    assert setting["coefficient"] != 0
    assert 0 < setting["coherence"] < setting["coherence unsteered"] < 100  # steering has its price
    assert len(vector.provenance["auroc"]) >= 2
    for judge, (estimate, low, high) in vector.provenance["auroc"].items():
        assert judge.endswith(f"valid for {trait}")
        assert low <= estimate <= high
        # Told apart from unsteered responses in the direction steered.
        assert (high < 0.5) if setting["coefficient"] < 0 else (low > 0.5)


@pytest.mark.slow
def test_one_read_from_written_answers_is_what_reading_them_gives(embedded):
    ready = pl.load_vector("empathy")
    assert ready.provenance["source"].startswith("written")
    examples = pl.traits.load_written_examples("empathy", "training")
    read = pl.read_persona_vector(embedded, "empathy", examples)  # in float32; the ready one was read in bfloat16
    assert float(pl.cosine(ready.directions, read.directions).min()) > 0.99
    assert torch.allclose(ready.norms, read.norms, rtol=0.05)


@pytest.mark.parametrize("trait", pl.vectors.list_ready_vectors())
def test_it_fits_the_embedded_model(embedded, trait):
    pl.load_vector(trait).check_model(embedded)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_fits_the_embedded_model_in_every_dtype_and_class(backend, dtype):
    pl.load_vector("evil").check_model(pl.load_model(backend=backend, dtype=dtype, device="cpu"))


def test_the_ready_judges_are_the_embedded_models_too(embedded):
    """In another dtype than their own they would be made anew."""
    for path in (files("persona_lens") / "data" / "judges").iterdir():
        if path.name.endswith(".json"):
            made_with = json.loads(path.read_text(encoding="utf-8"))["model"]
            assert made_with == [pl.describe_model(embedded).fingerprint, "bfloat16"]


def test_a_trait_without_one_is_refused_with_the_nearest_name():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'sycophancy'"):
        pl.load_vector("sycofancy")
    with pytest.raises(InvalidArgumentError, match="extract_persona_vector"):
        pl.load_vector("confidence")
