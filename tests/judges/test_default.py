"""The judge that is taken where none is given."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.judges import calibrate_likelihood_judge, default
from tests.small_trait import tiny_trait


@pytest.fixture
def model(tiny_folder):
    """A model of its own: what is known of a model is kept as long as it lives."""
    return pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")


@pytest.fixture
def calibrated(monkeypatch):
    """The (model, trait, pairs) that judges were calibrated for, without holding a model."""
    asked = []

    def calibrate(model, trait, *, n_pairs, run):
        asked.append((trait.name, n_pairs))
        return calibrate_likelihood_judge(model, trait, n_pairs=n_pairs, sampling=pl.Sampling(4), run=run)

    monkeypatch.setattr(default, "calibrate_likelihood_judge", calibrate)
    return asked


def test_it_is_calibrated_once_a_model_and_trait(model, calibrated):
    first, again = (default.default_judge(model, tiny_trait()) for _ in range(2))
    assert calibrated == [("loud", 2)]
    assert again.calibration == first.calibration
    assert again.model is model
    other = default.default_judge(model, replace(tiny_trait(), name="soft", extraction_questions=("Where?", "Who?")))
    assert calibrated == [("loud", 2), ("soft", 2)]
    assert other.calibration != first.calibration
    assert other.trait.name == "soft"


def test_a_trait_of_one_pair_gets_a_judge_of_one(model, calibrated):
    trait = replace(tiny_trait(), instruction_pairs=tiny_trait().instruction_pairs[:1])
    assert default.default_judge(model, trait).n_pairs == 1


def test_it_is_calibrated_again_when_the_weights_have_changed(model, calibrated):
    first = default.default_judge(model, tiny_trait())
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(3.0)
    second = default.default_judge(model, tiny_trait())
    assert len(calibrated) == 2
    assert second.calibration != first.calibration


def test_the_model_can_be_freed(tiny_folder, calibrated):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    default.default_judge(model, tiny_trait())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_its_progress_is_shown(model, calibrated):
    labels = []

    def bar(label, total):
        labels.append(label)
        return pl.progress_bars.no_progress(label, total)

    default.default_judge(model, tiny_trait(), pl.Run(progress=bar))
    assert labels == ["calibrating the judge (responses)"]


@pytest.mark.slow
def test_a_bundled_trait_with_written_examples_is_read_by_the_model_itself_and_fitted_once(model, calibrated):
    evil = pl.load_trait("evil")
    few = replace(evil, extraction_questions=evil.extraction_questions[:2])
    judge, again = (default.default_judge(model, few) for _ in range(2))
    assert isinstance(judge, pl.judges.CoherentJudge)
    assert judge.judge.encoder.layer == round(0.6 * model.cfg.n_layers)
    assert judge.identity == again.identity
    assert calibrated == [("evil", 2)]
    (judged,) = judge.score(["Who?"], ["Nobody at all."])
    assert 0 <= judged.score <= 100
    assert 0 <= judged.coherence <= 100


def test_a_trait_of_ones_own_by_a_bundled_name_is_not_judged_as_that_one(model, calibrated):
    own = replace(tiny_trait(), name="evil")
    assert isinstance(default.default_judge(model, own), pl.judges.LikelihoodJudge)


@pytest.mark.parametrize("trait", sorted(pl.traits.list_written_traits()))
def test_the_embedded_models_judge_comes_with_the_package_for_that_model_and_that_trait_alone(trait):
    parts = default._load_ready(("7420c29508998007", "bfloat16"), pl.load_trait(trait))
    assert parts.reading.layer == 18
    assert parts.reading.weights.shape == (576,)
    few = replace(pl.load_trait(trait), extraction_questions=pl.load_trait(trait).extraction_questions[:2])
    assert default._load_ready(parts.model, few) is not None
    assert default._load_ready((parts.model[0], "float32"), few) is None
    assert default._load_ready(parts.model, replace(tiny_trait(), name=trait)) is None
    swapped = replace(few, instruction_pairs=few.instruction_pairs[::-1])
    assert default._load_ready(parts.model, swapped) is None


@pytest.mark.slow
def test_a_ready_judge_is_taken_without_calibration_and_tells_overt_from_opposite_answers(calibrated):
    model = pl.load_model(dtype="bfloat16", device="cpu")
    judge = default.default_judge(model, pl.load_trait("empathy"))
    assert calibrated == []
    examples = pl.traits.load_written_examples("empathy", "judging")[:6]
    questions = [one.question for one in examples]
    overt, opposite = (
        [one.score for one in judge.judge.score(questions, [getattr(example, kind) for example in examples])]
        for kind in ("overt", "opposite")
    )
    assert sum(overt) / 6 > sum(opposite) / 6 + 50
