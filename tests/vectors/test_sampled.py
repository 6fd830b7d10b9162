"""Pairs that are sampled and kept, against the vector that adds the same responses up."""

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError
from persona_lens.vectors import find_vector, sample_pairs
from tests.small_trait import FixedJudge, LengthJudge, tiny_trait


class IdentifiedLengthJudge(LengthJudge):
    identity = "length"


SETTINGS = {"max_new_tokens": 6, "rollouts": 3, "seed": 2}


@pytest.mark.parametrize("judge", ["none", IdentifiedLengthJudge()], ids=["unjudged", "judged"])
def test_their_mean_difference_is_the_extracted_vector(tiny_model, judge, monkeypatch):
    monkeypatch.setattr("persona_lens.vectors.contrasts._PAIRS_AT_ONCE", 5)
    expected = pl.extract_persona_vector(tiny_model, tiny_trait(), judge=judge, **SETTINGS)
    pairs = sample_pairs(tiny_model, tiny_trait(), judge=judge, **SETTINGS)
    found = find_vector(pairs)
    torch.testing.assert_close(found.directions, expected.directions, atol=1e-5, rtol=1e-5)
    for at, cosines in found.split_half_cosine.items():  # none where the judge left a half with one pair
        torch.testing.assert_close(cosines, expected.split_half_cosine[at], atol=1e-5, rtol=0)
    assert len(pairs) == expected.counts.kept
    assert pairs.provenance["counts"] == vars(expected.counts)
    assert found.provenance.items() >= expected.provenance.items()
    assert list(pairs.questions) == sorted(pairs.questions)
    if judge == "none":
        assert found.split_half_cosine
        assert pairs.questions == tuple(question for question in range(4) for _ in range(6))
    else:
        assert 2 <= len(pairs) < expected.counts.pairs


def test_a_store_changes_nothing_computes_nothing_twice_and_serves_the_extraction_too(
    tiny_model, tmp_path, monkeypatch
):
    run = pl.Run(pl.ShardStore(tmp_path, {}))
    alone = sample_pairs(tiny_model, tiny_trait(), judge="none", **SETTINGS)
    vector = pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", run=run, **SETTINGS)
    first = sample_pairs(tiny_model, tiny_trait(), judge="none", run=run, **SETTINGS)
    monkeypatch.setattr("persona_lens.vectors.contrasts.sample_recorded_rollouts", None)
    second = sample_pairs(tiny_model, tiny_trait(), judge="none", run=run, **SETTINGS)
    for pairs in (first, second):
        assert torch.equal(pairs.positive, alone.positive)
        assert torch.equal(pairs.negative, alone.negative)
        assert pairs.questions == alone.questions
    again = pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", run=run, **SETTINGS)
    assert torch.equal(again.directions, vector.directions)


def test_too_few_kept_pairs_are_refused_with_what_became_of_the_others(tiny_model):
    with pytest.raises(InvalidArgumentError, match="'dropped_positive_score': 8"):
        sample_pairs(tiny_model, tiny_trait(), judge=FixedJudge((10.0, 90.0), (10.0, 90.0)), max_new_tokens=3)


def test_a_steered_model_and_values_out_of_range_are_refused_before_it_samples(tiny_model, monkeypatch):
    monkeypatch.setattr("persona_lens.vectors.contrasts.sample_recorded_rollouts", None)
    with pytest.raises(InvalidArgumentError, match="min_coherence"):
        sample_pairs(tiny_model, tiny_trait(), judge="none", min_coherence=101.0)
    with pytest.raises(InvalidArgumentError, match="rollouts"):
        sample_pairs(tiny_model, tiny_trait(), judge="none", rollouts=0)
    with pl.hooked(tiny_model, pl.Intervention.of(1, pl.tensors.Add(torch.ones(48), 1.0))):
        tiny_model(torch.tensor([[1, 2]]))
        with pytest.raises(HooksPresentError):
            sample_pairs(tiny_model, tiny_trait(), judge="none")
