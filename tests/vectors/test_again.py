"""A vector found anew: under other seeds as it was found, and how far it comes out the same."""

from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.plots import plot_quality
from persona_lens.tensors import cosine
from persona_lens.vectors import FirstComponent, QualityData, compare_repeats, extract_again
from tests.small_trait import LengthJudge, tiny_trait

SAMPLING = pl.Sampling(max_new_tokens=5, temperature=0.8, top_p=0.9, rollouts=2, seed=3)


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", sampling=SAMPLING)


def test_each_seed_gives_what_extraction_with_the_vectors_settings_gives(tiny_model, vector):
    found = extract_again(vector.at("last_prompt"), tiny_model, tiny_trait(), seeds=(7, 8))
    for seed, one in zip((7, 8), found, strict=True):
        expected = pl.extract_persona_vector(
            tiny_model, tiny_trait(), judge="none", sampling=replace(SAMPLING, seed=seed)
        )
        assert one.provenance == expected.provenance
        assert one.position == "last_prompt"
        for position, directions in expected.by_position.items():
            assert torch.equal(one.by_position[position], directions)


def test_an_estimators_vector_is_found_anew_by_it_with_the_judges_filter(tiny_model):
    options = {"judge": LengthJudge(), "sampling": SAMPLING, "min_coherence": 5.0}
    pairs = pl.vectors.sample_pairs(tiny_model, tiny_trait(), **options)
    vector = pl.vectors.find_vector(pairs, FirstComponent())
    (one,) = extract_again(
        vector, tiny_model, tiny_trait(), seeds=(4,), judge=LengthJudge(), estimator=FirstComponent()
    )
    again = pl.vectors.sample_pairs(tiny_model, tiny_trait(), **options | {"seed": 4})
    assert torch.equal(one.directions, pl.vectors.find_vector(again, FirstComponent()).directions)
    assert one.provenance["min_coherence"] == 5.0


def test_what_would_not_be_the_same_vector_is_refused_before_a_model_runs(tiny_model, vector):
    read = pl.PersonaVector("loud", vector.model, vector.by_position, provenance={"source": "written answers"})
    other = replace(tiny_trait(), extraction_questions=("Who?", "Me?"))
    named = replace(vector, provenance=vector.provenance | {"judge": "someone"})
    found = replace(vector, provenance=vector.provenance | {"estimator": {"kind": "FirstComponent"}})
    for name, given, trait, options in (
        ("vector", read, tiny_trait(), {}),
        ("trait", vector, other, {}),
        ("seeds", vector, tiny_trait(), {"seeds": (3,)}),
        ("seeds", vector, tiny_trait(), {"seeds": (1, 1)}),
        ("seeds", vector, tiny_trait(), {"seeds": ()}),
        ("seed", vector, tiny_trait(), {"seeds": (-1,)}),
        ("judge", named, tiny_trait(), {"judge": LengthJudge()}),
        ("judge", vector, tiny_trait(), {"judge": LengthJudge()}),
        ("estimator", found, tiny_trait(), {}),
        ("estimator", vector, tiny_trait(), {"estimator": FirstComponent()}),
    ):
        with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
            extract_again(given, tiny_model, trait, **options)
    foreign = replace(vector, model=replace(vector.model, fingerprint="0" * 16))
    with pytest.raises(ModelMismatchError):
        extract_again(foreign, tiny_model, tiny_trait())


def test_repeats_are_the_mean_lowest_and_highest_cosine_of_any_two(tiny_model, vector):
    again = extract_again(vector, tiny_model, tiny_trait(), seeds=(7, 8))
    found = compare_repeats(vector, again)
    assert found.sources == ("seed 7", "seed 8")
    three = [vector.directions, *(one.directions for one in again)]
    for layer, interval in enumerate(found.cosine):
        pairs = [float(cosine(three[a][layer], three[b][layer])) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert interval.estimate == pytest.approx(sum(pairs) / 3, abs=1e-5)
        assert (interval.low, interval.high) == pytest.approx((min(pairs), max(pairs)), abs=1e-5)
    card = vector.quality(tiny_model, QualityData(), again=again)
    assert card.again.to_json() == found.to_json()
    values = {name: value for name, value, _ in card.list_lines()}
    assert values["cosine of two, found anew (seed 7; seed 8)"] == str(found.cosine[1])
    assert "two, found anew (lowest to highest): seed 7, seed 8" in {one.name for one in plot_quality(card).data}
    (only,) = vector.quality(tiny_model, QualityData(), again=again[0]).again.sources
    assert only == "seed 7"


def test_vectors_that_cannot_be_repeats_are_refused(vector):
    with pytest.raises(InvalidArgumentError, match="`again`"):
        compare_repeats(vector, [])
    with pytest.raises(InvalidArgumentError, match="token position"):
        compare_repeats(vector, [vector.at("prompt_mean")])
    zero = {"response_mean": torch.cat([torch.zeros(1, 48), vector.directions[1:]])}
    with pytest.raises(InvalidArgumentError, match="at every layer"):
        compare_repeats(vector, [replace(vector, by_position=zero, absent=(0,))])
    with pytest.raises(ModelMismatchError, match="again"):
        compare_repeats(vector, [replace(vector, model=replace(vector.model, fingerprint="0" * 16))])
