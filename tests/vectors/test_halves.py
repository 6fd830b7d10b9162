"""A vector whose halves disagree says so where it was made."""

import warnings
from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import UnstableVectorWarning
from persona_lens.vectors.halves import warn_if_unstable

# Of the second half the answers are the wrong way round.
ASKED = [("Why?", "SO!", "so."), ("Who?", "me.", "ME!"), ("When?", "NOW!", "now."), ("Where?", "there.", "THERE!")]
AGREEING = [pl.traits.WrittenExample(f"Why {i}?", overt="SO!", opposite="so.") for i in range(4)]


@pytest.fixture
def vector(tiny_model):
    return pl.read_persona_vector(tiny_model, "loud", AGREEING)


def test_a_vector_of_pairs_that_disagree_is_questioned_at_the_line_that_asked_for_it(tiny_model):
    examples = [pl.traits.WrittenExample(question, overt=one, opposite=other) for question, one, other in ASKED]
    with pytest.warns(UnstableVectorWarning, match="of two halves of its 4 pairs have a cosine of -") as caught:
        pl.read_persona_vector(tiny_model, "loud", examples)
    assert caught[0].filename == __file__
    # One that is found on the way is questioned where the user's own line is, too.
    with pytest.warns(UnstableVectorWarning) as caught:
        pl.vectors.optimise_vector(tiny_model, "loud", examples, 1, n_steps=1)
    assert caught[0].filename == __file__


def test_a_sampled_vector_is_questioned_at_the_line_that_asked_for_it(tiny_model, monkeypatch):
    trait = replace(pl.load_trait("evil"), extraction_questions=("Why?", "Who?"))
    trait = replace(trait, instruction_pairs=trait.instruction_pairs[:1])
    # The model is random: what its halves say is left out of it.
    monkeypatch.setattr("persona_lens.vectors.extraction.cosine", lambda one, other: torch.full(one.shape[:-1], 0.3))
    sampling = pl.Sampling(max_new_tokens=4)
    with pytest.warns(UnstableVectorWarning, match=r"cosine of 0\.30") as caught:
        pl.extract_persona_vector(tiny_model, trait, judge="none", sampling=sampling)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("cosines", "is_warned"), [([0.1, 0.49, 0.2], True), ([0.1, 0.5, -1.0], False), (None, False)])
def test_one_layer_at_which_halves_agree_is_enough_and_without_halves_nothing_is_said(vector, cosines, is_warned):
    halves = {} if cosines is None else {"response_mean": torch.tensor(cosines)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_unstable(replace(vector, split_half_cosine=halves))
    assert [one.category for one in caught] == [UnstableVectorWarning] * is_warned
    assert not is_warned or "a cosine of 0.49 where they agree best, at layer 1;" in str(caught[0].message)


def test_a_vector_that_is_loaded_is_not_questioned_again(vector, tmp_path):
    replace(vector, split_half_cosine={"response_mean": torch.zeros(3)}).save(tmp_path / "v.safetensors")
    pl.PersonaVector.load(tmp_path / "v.safetensors")


def test_where_a_card_has_no_pairs_it_takes_the_cosine_that_the_vector_carries(tiny_model, vector):
    weak = replace(vector, split_half_cosine={"response_mean": torch.tensor([0.9, 0.34, 0.9])})
    card = weak.quality(tiny_model, pl.vectors.QualityData())
    assert ("cosine of two halves, as found", "0.34", "noise: 0") in card.list_lines()
    assert card.list_concerns() == ("the other half of its questions gives another direction (cosine 0.34)",)
    assert card.list_concerns(0) == ()
    assert "1 concern," in repr(card)
    assert type(card).from_json(card.to_json()).list_concerns() == card.list_concerns()
    pairs = pl.vectors.read_pairs(tiny_model, "loud", AGREEING)
    measured = weak.quality(tiny_model, pl.vectors.QualityData(pairs))
    assert not [one for one in measured.list_concerns() if "half" in one]
    unknown = replace(vector, split_half_cosine={}).quality(tiny_model, pl.vectors.QualityData())
    assert "0 concerns," in repr(unknown)
