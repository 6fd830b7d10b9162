import dataclasses
import math

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import (
    FileFormatError,
    HooksPresentError,
    InvalidArgumentError,
    LayerOutOfRangeError,
    ModelMismatchError,
)
from persona_lens.storage import Shard, load_shard, save_shard
from persona_lens.streams import Stream
from tests.small_trait import FixedJudge, tiny_trait


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6, rollouts=2)


def test_a_vector_is_the_mean_difference_of_the_residual_stream(tiny_model, vector):
    """Against an independent pass: sample the same rollouts, run each alone, subtract the means."""
    trait = tiny_trait()
    means = []
    for side, systems in enumerate((trait.positive_system_prompts, trait.negative_system_prompts)):
        requests = [
            pl.models.RolloutRequest(question, (0, Stream.EXTRACTION, side, p, q, r), system)
            for p, system in enumerate(systems)
            for q, question in enumerate(trait.extraction_questions)
            for r in range(2)
        ]
        rows = []
        for rollout in pl.models.sample_rollouts(tiny_model, requests, pl.Sampling(max_new_tokens=6)):
            prompt = pl.models.encode_prompt(
                tiny_model.tokenizer,
                [
                    {"role": "system", "content": rollout.request.system},
                    {"role": "user", "content": rollout.request.question},
                ],
            ).tokens
            resid = pl.cache_residual_stream(tiny_model, torch.tensor([prompt + rollout.tokens]))[:, 0]
            rows.append(
                torch.stack(
                    [resid[:, len(prompt) :].mean(1), resid[:, : len(prompt)].mean(1), resid[:, len(prompt) - 1]]
                )
            )
        means.append(torch.stack(rows).mean(0))
    expected = means[0] - means[1]
    for i, position in enumerate(("response_mean", "prompt_mean", "last_prompt")):
        torch.testing.assert_close(vector.by_position[position], expected[i], atol=2e-4, rtol=1e-3)


def test_counts_add_up_and_every_reason_is_named(tiny_model):
    cases = {
        ((90.0, 90.0), (10.0, 90.0)): "kept",
        ((50.0, 90.0), (10.0, 90.0)): "dropped_positive_score",
        ((90.0, 90.0), (50.0, 90.0)): "dropped_negative_score",
        ((None, None, "no"), (10.0, 90.0)): "dropped_unscored",
        ((math.nan, 90.0), (10.0, 90.0)): "dropped_unscored",
        ((90.0, 90.0), (math.nan, 90.0)): "dropped_unscored",
        ((90.0, math.nan), (10.0, 90.0)): "dropped_incoherent",
        ((90.0, 20.0), (10.0, 90.0)): "dropped_incoherent",
        ((90.0, 90.0), (10.0, 49.0)): "dropped_incoherent",
    }
    for (positive, negative), reason in cases.items():
        judge = FixedJudge(positive, negative)
        kwargs = {"judge": judge, "max_new_tokens": 3, "min_coherence": 50.0}
        if reason == "kept":
            counts = pl.extract_persona_vector(tiny_model, tiny_trait(), **kwargs).counts
            assert counts.kept == counts.pairs == 8
        else:
            with pytest.raises(InvalidArgumentError, match=f"'{reason}': 8"):
                pl.extract_persona_vector(tiny_model, tiny_trait(), **kwargs)


def test_extraction_gives_the_same_vector_twice_and_another_for_another_seed(tiny_model, vector):
    again = pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6, rollouts=2)
    other = pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6, rollouts=2, seed=1)
    assert torch.equal(again.directions, vector.directions)
    assert not torch.equal(other.directions, vector.directions)


def test_a_store_changes_nothing_and_computes_nothing_twice(tiny_model, vector, tmp_path, monkeypatch):
    kwargs = {"judge": "none", "max_new_tokens": 6, "rollouts": 2, "run": pl.Run(pl.ShardStore(tmp_path, {}))}
    first = pl.extract_persona_vector(tiny_model, tiny_trait(), **kwargs)
    monkeypatch.setattr("persona_lens.vectors.contrasts.sample_recorded_rollouts", None)
    second = pl.extract_persona_vector(tiny_model, tiny_trait(), **kwargs)
    assert torch.equal(first.directions, vector.directions)
    assert torch.equal(second.directions, vector.directions)


def test_one_store_serves_several_traits_and_settings(tiny_model, tmp_path):
    other = dataclasses.replace(tiny_trait(), name="quiet", extraction_questions=("Why not?", "Is it?"))
    runs = [(tiny_trait(), {}), (other, {}), (tiny_trait(), {"seed": 1}), (tiny_trait(), {"max_new_tokens": 4})]
    store = pl.ShardStore(tmp_path, {})
    for trait, changed in runs:
        given = {"judge": "none", "max_new_tokens": 6} | changed
        alone = pl.extract_persona_vector(tiny_model, trait, **given)
        assert torch.equal(
            pl.extract_persona_vector(tiny_model, trait, run=pl.Run(store), **given).directions, alone.directions
        )


def test_a_steered_model_is_refused_before_it_samples(tiny_model, vector, monkeypatch):
    monkeypatch.setattr("persona_lens.vectors.contrasts.sample_recorded_rollouts", None)
    steer = pl.steering_hooks(vector, layer=1, coefficient=1.0)
    with tiny_model.hooks(fwd_hooks=steer), pytest.raises(HooksPresentError, match=r"blocks\.1"):
        pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none")
    hook = ("blocks.2.hook_mlp_out", lambda activation, hook: activation)
    with tiny_model.hooks(fwd_hooks=[hook]), pytest.raises(HooksPresentError, match="hook_mlp_out"):
        pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none")


def test_a_digest_is_of_the_directions_in_use_in_whatever_precision(vector):
    half = dataclasses.replace(vector, by_position={k: d.bfloat16() for k, d in vector.by_position.items()})
    assert half.digest == dataclasses.replace(half).digest != vector.digest
    assert vector.at("last_prompt").digest != vector.digest == vector.at("response_mean").digest


def test_a_vector_survives_the_round_trip_through_a_file(vector, tmp_path):
    vector.at("last_prompt").save(tmp_path / "v.safetensors")
    loaded = pl.PersonaVector.load(tmp_path / "v.safetensors")
    assert loaded.position == "last_prompt"
    for position, directions in vector.by_position.items():
        assert torch.equal(loaded.by_position[position], directions)
    assert loaded.counts == vector.counts
    assert loaded.provenance == vector.provenance
    assert loaded.model == vector.model


def test_a_truncated_vector_file_is_refused(vector, tmp_path):
    path = tmp_path / "v.safetensors"
    vector.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileFormatError, match="cut off"):
        pl.PersonaVector.load(path)


def test_nan_in_a_vector_is_refused_and_placed(vector):
    broken = vector.directions.clone()
    broken[1, 3] = float("nan")
    with pytest.raises(InvalidArgumentError, match=r"NaN or infinity at layers \[1\]"):
        dataclasses.replace(vector, by_position=vector.by_position | {"response_mean": broken})


def test_a_layer_out_of_range_is_refused(vector):
    for layer in (-1, 3):
        with pytest.raises(LayerOutOfRangeError, match=r"\[0, 3\)"):
            vector.unit(layer)


def test_a_vector_refuses_another_model(vector, tiny_model):
    other = dataclasses.replace(vector, model=dataclasses.replace(vector.model, fingerprint="0" * 16))
    with pytest.raises(ModelMismatchError, match="Extract it from this model"):
        other.check_model(tiny_model)
    with pytest.raises(ModelMismatchError):
        vector + other


def test_arithmetic_is_that_of_the_directions(vector):
    torch.testing.assert_close((vector + vector).directions, 2 * vector.directions)
    torch.testing.assert_close((vector - 0.5 * vector).directions, 0.5 * vector.directions)
    torch.testing.assert_close((-vector).directions, -vector.directions)
    with pytest.raises(InvalidArgumentError, match="token position"):
        vector + vector.at("last_prompt")
    with pytest.raises(TypeError):
        vector + 1


def test_a_multiple_of_a_vector_says_where_its_own_move_was_tried(vector):
    setting = {"layer": 1, "coefficient": 1.5, "coherence": 63.0}
    tried = dataclasses.replace(vector, provenance=vector.provenance | {"setting": setting, "auroc": {"judge": 0.9}})
    half = 0.5 * tried
    assert half.provenance["setting"] == setting | {"coefficient": 3.0}
    assert half.provenance["auroc"] == {"judge": 0.9}
    torch.testing.assert_close(3.0 * half.direction(1), 1.5 * tried.direction(1))
    assert tried.provenance["setting"] == setting, "the vector itself was changed"
    for turned in (-tried, 0.0 * tried, -0.5 * tried, 1e-310 * tried, tried + tried):
        assert not turned.provenance.keys() & {"setting", "auroc"}
    assert (-tried).provenance.items() >= vector.provenance.items()
    layer_alone = dataclasses.replace(vector, provenance={"setting": {"layer": 1}})
    assert (2 * layer_alone).provenance == {"setting": {"layer": 1}}


def test_a_vector_shows_itself(vector):
    assert "pairs" not in repr(vector + vector), "no pair was counted for a sum"
    assert "kept 16 of 16 pairs" in repr(vector)
    assert "<table>" in vector._repr_html_()
    assert len(vector.plot().data) > 0


@pytest.mark.parametrize(("name", "value"), [("rollouts", 0), ("min_coherence", 101.0), ("max_new_tokens", 0)])
def test_bad_arguments_are_refused_before_the_model_runs(name, value, monkeypatch):
    with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
        pl.extract_persona_vector(torch.nn.Linear(1, 1), tiny_trait(), judge="none", **{name: value})


class PickyJudge:
    """Likes the first instruction pair only; finds one negative response incoherent, leaves one unscored."""

    name = "picky"

    def __init__(self):
        self.trait = tiny_trait()

    def score(self, questions, responses):
        half = len(questions) // 2
        found = []
        for i, question in enumerate(questions):
            pair, q = i % half % 2, self.trait.extraction_questions.index(question)
            score = 10.0 if i >= half else 90.0 if pair == 0 else 40.0
            coherence = 30.0 if i >= half and q == 1 else 50.0
            found.append(
                pl.judges.Judgement(None, None, "no") if i >= half and q == 2 else pl.judges.Judgement(score, coherence)
            )
        return found


def test_a_vector_rests_on_the_kept_pairs_alone_and_its_halves_on_their_questions(tiny_model, monkeypatch):
    """Pairs by hand: of eight, the judge keeps those of pair 0 on questions 0 and 3. In shards of four."""
    monkeypatch.setattr("persona_lens.vectors.contrasts._PAIRS_AT_ONCE", 4)
    trait = tiny_trait()
    found = pl.extract_persona_vector(tiny_model, trait, judge=PickyJudge(), max_new_tokens=6, min_coherence=50.0)
    assert dataclasses.asdict(found.counts) == {
        "pairs": 8, "kept": 2, "dropped_empty": 0, "dropped_unscored": 2, "dropped_positive_score": 3,
        "dropped_negative_score": 0, "dropped_incoherent": 1,
        "dropped_unfinished": 0,
    }  # fmt: skip
    differences = []
    for q in (0, 3):
        sides = []
        for side, system in enumerate((trait.positive_system_prompts[0], trait.negative_system_prompts[0])):
            request = pl.models.RolloutRequest(
                trait.extraction_questions[q], (0, Stream.EXTRACTION, side, 0, q, 0), system
            )
            (rollout,) = pl.models.sample_recorded_rollouts(tiny_model, [request], pl.Sampling(max_new_tokens=6))
            sides.append(rollout.residuals.response_mean)
        differences.append(sides[0] - sides[1])
    torch.testing.assert_close(found.directions, (differences[0] + differences[1]) / 2, atol=1e-4, rtol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(*differences, dim=-1)
    torch.testing.assert_close(found.split_half_cosine["response_mean"], cosines, atol=1e-3, rtol=1e-3)


def test_a_pair_with_an_empty_response_on_either_side_is_dropped(tiny_model, monkeypatch):
    sample = pl.models.sample_recorded_rollouts

    def empty_some(model, requests, settings):
        empty = {"SHOUT!": "Who?", "whisper.": "What is up?"}  # system prompt to question
        return [
            dataclasses.replace(rollout, response=" ", residuals=None)
            if empty.get(rollout.request.system) == rollout.request.question
            else rollout
            for rollout in sample(model, requests, settings)
        ]

    monkeypatch.setattr("persona_lens.vectors.contrasts.sample_recorded_rollouts", empty_some)
    for judge in ("none", FixedJudge((90.0, 90.0), (10.0, 90.0))):
        counts = pl.extract_persona_vector(tiny_model, tiny_trait(), judge=judge, max_new_tokens=3).counts
        assert (counts.pairs, counts.kept, counts.dropped_empty) == (8, 6, 2)


def test_a_unit_direction_has_norm_one_and_the_raw_ones_direction(vector):
    torch.testing.assert_close(vector.unit(1) * vector.norms[1], vector.direction(1))
    torch.testing.assert_close(vector.unit(1).norm(), torch.tensor(1.0))


def test_a_file_of_something_else_or_of_a_later_format_is_refused(vector, tmp_path):
    path = tmp_path / "v.safetensors"
    vector.save(path)
    shard = load_shard(path)
    for records, words in (
        (["a list"], "must hold a persona-vector"),
        (shard.records | {"format": "another"}, "must hold a persona-vector"),
        (shard.records | {"version": 2}, "Update persona-lens"),
        (shard.records | {"version": "1"}, "Got '1'"),
        ({k: v for k, v in shard.records.items() if k != "version"}, "version 1 or lower. Got None"),
        ({k: v for k, v in shard.records.items() if k != "counts"}, "missing keys .'counts'"),
        (shard.records | {"model": {"name": "x"}}, "missing keys .*'d_model'.* @ persona-vector.model"),
        (shard.records | {"position": "first_token"}, "persona-vector.position"),
    ):
        save_shard(path, Shard(shard.tensors, records))
        with pytest.raises(FileFormatError, match=words):
            pl.PersonaVector.load(path)


def test_every_layers_unit_is_there_and_a_direction_of_zero_stays_zero(tiny_model):
    info = pl.describe_model(tiny_model)
    directions = torch.randn(info.n_layers, info.d_model)
    directions[1] = 0
    vector = pl.PersonaVector("optimised at two layers", info, {"response_mean": directions})
    assert torch.equal(vector.units[0], vector.unit(0))
    assert not vector.units[1].any()
    ordinary = pl.measure_ordinary_projections(tiny_model, vector, questions=["Why?"])
    assert not ordinary.projections[1].any()
    assert ordinary.projections[0].any()
