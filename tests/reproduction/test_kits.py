"""What a trait is measured with: found where layer_sweep.py left it, made anew where it does not fit."""

from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import LayerOutOfRangeError
from persona_lens.evaluation import Confirmation, SweepResult
from persona_lens.judges.likelihood import JudgeSeparation, LikelihoodCalibration
from persona_lens.reproduction.kits import Profile, find_sources, prepare_kit
from persona_lens.reproduction.layer_sweep import JudgeNote, LayerSweep, VectorNote
from persona_lens.statistics import Interval
from persona_lens.storage import ShardStore
from persona_lens.vectors import ExtractionCounts
from tests.small_trait import tiny_trait

PROFILE = Profile(1.0, 6, 1, 1, 1)
MADE_BY = PROFILE.sample_extraction(0)


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", sampling=MADE_BY)


def write_sweep(model_info, folder, layer):
    """Write a layer sweep that chose a layer."""
    point = Interval(1.0, 1.0, 1.0)
    sweep = SweepResult(
        trait="loud", model=model_info, judge="made", layers=(layer,), coefficients=(1.0,), questions=("Why?",),
        scores=torch.zeros(1, 1, 1), coherences=torch.zeros(1, 1, 1), responses=((("x",),),),
        baseline_scores=torch.zeros(1), baseline_coherences=torch.zeros(1), null_layers=(1,),
        null_scores=torch.zeros(1, 1, 1, 1), null_coherences=torch.zeros(1, 1, 1, 1), n_unscored=0, provenance={},
    )  # fmt: skip
    names = (
        "steered", "baseline", "random", "rise", "above_random", "coherence", "baseline_coherence", "random_coherence",
    )  # fmt: skip
    LayerSweep(
        config={},
        judge=JudgeNote("made", 1, LikelihoodCalibration(1.0, 0.0, -2.0, -3.0, -1.0, 1, 1, 1, 0)),
        separation=JudgeSeparation(point, 1, 1, 0),
        vector=VectorNote(ExtractionCounts(), {}),
        norms=(1.0,),
        split_half_cosine={},
        sweep=sweep,
        confirmation=Confirmation(
            layer=layer, coefficient=1.0, **dict.fromkeys(names, point), examples=(), n_questions=1, n_responses=1,
            n_unscored=0,
        ),
    ).save(folder / "layer_sweep_loud.json")  # fmt: skip


def test_a_vector_of_the_same_model_and_sampling_is_used_again(tiny_model, vector, tmp_path):
    nothing = find_sources(tiny_model, "loud", tmp_path)
    assert (nothing.vector, nothing.vector_source) == (None, "extracted by this run")
    vector.save(tmp_path / "vector_loud.safetensors")
    for made_by in (MADE_BY, None):
        found = find_sources(tiny_model, "loud", tmp_path, made_by=made_by)
        assert torch.equal(found.vector.directions, vector.directions)
        assert "vector_loud.safetensors, sha256" in found.vector_source


@pytest.mark.parametrize("change", [{"max_new_tokens": 7}, {"rollouts": 2}, {"temperature": 0.5}, {"seed": 1}])
def test_a_vector_that_was_sampled_otherwise_is_not(tiny_model, vector, tmp_path, change):
    vector.save(tmp_path / "vector_loud.safetensors")
    assert find_sources(tiny_model, "loud", tmp_path, made_by=replace(MADE_BY, **change)).vector is None


def test_a_vector_of_another_model_or_trait_is_not(tiny_model, vector, tmp_path):
    path = tmp_path / "vector_loud.safetensors"
    replace(vector, model=replace(vector.model, fingerprint="other")).save(path)
    assert find_sources(tiny_model, "loud", tmp_path).vector is None
    replace(vector, trait="soft").save(path)
    assert find_sources(tiny_model, "loud", tmp_path).vector is None


def test_the_layer_is_that_of_this_models_layer_sweep_where_none_is_given(tiny_model, tmp_path):
    def choose(layer=None):
        found = find_sources(tiny_model, "loud", tmp_path, layer=layer)
        return found.layer, found.layer_source

    info = pl.describe_model(tiny_model)
    assert choose() == (1, "middle layer")
    write_sweep(info, tmp_path, layer=2)
    assert choose() == (2, "chosen by steering in layer_sweep_loud.json")
    assert choose(0) == (0, "--layer")
    with pytest.raises(LayerOutOfRangeError):
        choose(3)
    write_sweep(replace(info, fingerprint="another"), tmp_path, layer=2)
    assert choose() == (1, "middle layer")


def test_a_kit_has_the_vector_that_was_found_and_a_judge_of_the_profiles_sampling(tiny_model, vector, tmp_path):
    vector.save(tmp_path / "vector_loud.safetensors")
    sources = find_sources(tiny_model, "loud", tmp_path, layer=2)
    kit = prepare_kit(tiny_model, tiny_trait(), sources, PROFILE, 3, pl.Run())
    assert kit.vector is sources.vector
    assert kit.layer == 2
    expected = pl.judges.calibrate_likelihood_judge(
        tiny_model, tiny_trait(), n_pairs=1, sampling=pl.Sampling(max_new_tokens=6, seed=3)
    )
    assert kit.judge.calibration == expected.calibration
    assert (kit.judge_note.n_pairs, kit.judge_note.calibration) == (1, expected.calibration)
    assert kit.vector_note.provenance == vector.provenance


def test_a_kit_without_a_vector_extracts_one_with_its_judge_and_reads_both_back(tiny_model, tmp_path, monkeypatch):
    asked = []

    def extract(model, trait, *, judge, sampling, run):
        asked.append((judge.calibration, sampling))
        return pl.extract_persona_vector(model, trait, judge="none", sampling=sampling, run=run)

    monkeypatch.setattr("persona_lens.reproduction.kits.extract_persona_vector", extract)
    sources = find_sources(tiny_model, "loud", tmp_path)
    profile = replace(PROFILE, extraction_rollouts=2, rollouts=3)
    run = pl.Run(ShardStore(tmp_path / "runs", {}))
    first = prepare_kit(tiny_model, tiny_trait(), sources, profile, 0, run)
    for name in ("judges.likelihood.sample_rollouts", "vectors.extraction.sample_recorded_rollouts"):
        monkeypatch.setattr(f"persona_lens.{name}", None)
    again = prepare_kit(tiny_model, tiny_trait(), sources, profile, 0, run)
    assert asked == [(first.judge.calibration, profile.sample_extraction(0))] * 2
    assert asked[0][1].rollouts == 2
    assert torch.equal(again.vector.directions, first.vector.directions)
    assert again.judge.calibration == first.judge.calibration
