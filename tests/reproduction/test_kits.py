"""What a trait is measured with: found where layer_sweep.py left it, made anew where it does not fit."""

from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import LayerOutOfRangeError
from persona_lens.evaluation import ConditionScores, SweepResult
from persona_lens.evaluation.sweep import LayerChoice
from persona_lens.reproduction.arguments import BaseArguments
from persona_lens.reproduction.kits import Profile, find_sources, prepare_kit
from persona_lens.reproduction.layer_sweep import LayerSweep, ScoreAndCoherence, VectorNote
from persona_lens.statistics import Interval
from persona_lens.storage import ShardStore
from persona_lens.vectors import ExtractionCounts
from tests.experiments.scripts import save_talkative
from tests.small_trait import tiny_trait

PROFILE = Profile(1.0, 6, 1, 1)
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
    answered = ConditionScores(
        ("unsteered",), ("When?",), "made", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), ((("x",),),)
    )
    LayerSweep(
        config={}, trait="loud", validations=(), responses=answered, scores={"made": answered.scores}, nulls={},
        null_scores={}, null_step=1.0, source="sampled", vector=VectorNote(ExtractionCounts(), {}), norms=(1.0,),
        split_half_cosine={}, sweep=sweep, system_prompt=ScoreAndCoherence(point, point),
        choice=LayerChoice("made", layer, 1.0, point, point),
    ).save(folder / "layer_sweep_loud.json")  # fmt: skip


def test_a_vector_of_the_same_model_and_trait_is_used_again(tiny_model, vector, tmp_path):
    nothing = find_sources(tiny_model, "loud", tmp_path)
    assert (nothing.vector, nothing.vector_source) == (None, "made by this run")
    vector.save(tmp_path / "vector_loud.safetensors")
    found = find_sources(tiny_model, "loud", tmp_path)
    assert torch.equal(found.vector.directions, vector.directions)
    assert "vector_loud.safetensors, sha256" in found.vector_source


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


def ask_for(tmp_path, seed=0):
    return BaseArguments(seed=seed, runs=tmp_path / "runs")


def test_a_kit_has_the_vector_that_was_found_and_a_judge_of_the_profiles_sampling(tiny_model, vector, tmp_path):
    vector.save(tmp_path / "vector_loud.safetensors")
    sources = find_sources(tiny_model, "loud", tmp_path, layer=2)
    kit = prepare_kit(tiny_model, tiny_trait(), sources, PROFILE, pl.Run(), ask_for(tmp_path, 3))
    assert kit.vector is sources.vector
    assert kit.layer == 2
    expected = pl.judges.calibrate_likelihood_judge(
        tiny_model, tiny_trait(), n_pairs=1, sampling=pl.Sampling(max_new_tokens=6, seed=3)
    )
    assert kit.judge.calibration == expected.calibration
    assert (kit.judge_note.name, kit.second) == (expected.name, None)
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
    run, arguments = pl.Run(ShardStore(tmp_path / "own", {})), ask_for(tmp_path)
    first = prepare_kit(tiny_model, tiny_trait(), sources, profile, run, arguments)
    for name in ("judges.likelihood.sample_rollouts", "vectors.contrasts.sample_recorded_rollouts"):
        monkeypatch.setattr(f"persona_lens.{name}", None)
    again = prepare_kit(tiny_model, tiny_trait(), sources, profile, run, arguments)
    assert asked == [(first.judge.calibration, profile.sample_extraction(0))] * 2
    assert asked[0][1].rollouts == 2
    assert torch.equal(again.vector.directions, first.vector.directions)
    assert again.judge.calibration == first.judge.calibration


@pytest.mark.slow
def test_a_trait_with_written_examples_has_two_measured_judges_and_the_vector_read_from_them(tmp_path):
    tiny_model = pl.load_model(save_talkative(tmp_path / "model"), dtype="float32")  # its context holds the answers
    sources = find_sources(tiny_model, "formality", tmp_path)
    profile = replace(PROFILE, n_examples=10)
    kit = prepare_kit(tiny_model, pl.load_trait("formality"), sources, profile, pl.Run(), ask_for(tmp_path))
    assert kit.judge_note.name.startswith("embedding judge")
    assert kit.judge_note.name.endswith("valid for formality")
    assert "all-MiniLM-L6-v2" in kit.second.name
    examples = pl.traits.load_written_examples("formality", "training")[:10]
    assert torch.equal(kit.vector.directions, pl.read_persona_vector(tiny_model, "formality", examples).directions)
    (judged,) = kit.judge.score(["Why?"], ["Because."])
    assert judged.coherence is not None
    assert judged.score is not None
