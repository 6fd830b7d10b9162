"""Steered responses beside everything simpler: what is pooled, compared and shown."""

from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.evaluation import ConditionScores
from persona_lens.judges import Contrast, JudgeValidation
from persona_lens.reproduction.bench import Bench, NullSize, measure_lengths, note_setting, shuffle_labels
from persona_lens.reproduction.comparison import Comparison
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.statistics import Interval, auroc
from persona_lens.streams import Stream
from tests.experiments.scripts import save_talkative

QUESTIONS = ("q0", "q1", "q2", "q3")
CONDITIONS = ("unsteered", "written vector", "vector of humorous", "vector of evil")


class Shown(Comparison):
    """A comparison that draws nothing."""

    def plot(self):
        raise NotImplementedError


def answers(scores, conditions):
    texts = tuple(tuple((f"{name} {q} <b>|",) for q in QUESTIONS) for name in conditions)
    return ConditionScores(conditions, QUESTIONS, "c", scores, torch.full_like(scores, 70.0), texts)


def validation(judge, value):
    return JudgeValidation(judge, "id", "evil", (Contrast("overt v ordinary", Interval(value, value, value), 0.9),), 10)


@pytest.fixture
def found():
    generator = torch.Generator().manual_seed(0)
    first, second = (100 * torch.rand(4, 4, 1, generator=generator) for _ in range(2))
    nulls = torch.rand(3, 4, 1, generator=generator)
    return Shown(
        config={}, trait="evil", validations=(validation("a", 0.85), validation("b", 0.95)),
        responses=answers(first, CONDITIONS),
        scores={"a, partly valid for evil": first, "b, valid for evil": second},
        nulls={"shuffled labels": answers(nulls, ("0", "1", "2"))},
        null_scores={"shuffled labels": {"a, partly valid for evil": nulls, "b, valid for evil": nulls}}, null_step=0.1,
    )  # fmt: skip


def test_the_judge_that_confirms_is_the_first_valid_one_that_did_not_choose(found):
    assert found.verdicts == {"a, partly valid for evil": "partly valid", "b, valid for evil": "valid"}
    assert found.confirming == "b, valid for evil"
    assert found.readers == ("a, partly valid for evil", "b, valid for evil")
    first, second = found.scores.values()
    between = {"a, partly valid for evil": first, "c, not valid for evil": first, "b, valid for evil": second}
    assert replace(found, scores=between).confirming == "b, valid for evil"
    alone = replace(found, scores={"a, partly valid for evil": first})
    assert alone.readers == ("a, partly valid for evil",)
    assert found.shorten(found.confirming) == "b"


def test_other_traits_are_pooled_and_so_are_a_nulls_directions(found):
    judge = found.confirming
    scores = found.scores[judge]
    assert found.auroc(judge, "written vector", "other traits").estimate == pytest.approx(
        auroc(scores[1].flatten(), scores[2:].flatten())
    )
    null = found.null_scores["shuffled labels"][judge]
    assert found.auroc(judge, "written vector", "shuffled labels").estimate == pytest.approx(
        auroc(scores[1].flatten(), null.flatten())
    )
    assert found.above(judge, "written vector", "shuffled labels").estimate == pytest.approx(
        float(scores[1].mean() - null.mean()), rel=1e-4
    )
    assert found.mean(judge, "shuffled labels").estimate == pytest.approx(float(null.mean()), rel=1e-4)
    assert found.rise(judge, "written vector").estimate == pytest.approx(
        float((scores[1] - scores[0]).mean()), rel=1e-4
    )


def test_the_pairs_shown_are_those_that_the_confirming_judge_sees_rise_most_and_nothing_in_them_is_markup(found):
    scores = found.scores[found.confirming]
    order = (scores[1] - scores[0]).flatten().argsort(descending=True).tolist()
    shown = found.show_pairs(n=2)
    assert [question for question, _, _ in shown] == [QUESTIONS[at] for at in order[:2]]
    assert all(plain.startswith("unsteered") and steered.startswith("written") for _, plain, steered in shown)
    assert "| unsteered q" in found.pairs_to_markdown()
    assert "&lt;b&gt;\\|" in found.pairs_to_markdown()


def test_shuffled_labels_turn_half_of_the_pairs_round_each_time_anew():
    pairs = torch.eye(6)
    drawn = shuffle_labels(pairs, 5, seed=0)
    assert torch.allclose(drawn.norm(dim=-1), torch.ones(5))
    assert ((drawn < 0).sum(dim=-1) == 3).all()
    assert len({tuple(row.tolist()) for row in drawn}) > 1
    assert torch.equal(drawn, shuffle_labels(pairs, 5, seed=0))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    model = pl.load_model(save_talkative(folder / "model"), dtype="float32")
    trait, sampling = pl.load_trait("formality"), pl.Sampling(4, 0.7)
    run = pl.Run()
    judges = prepare_judges(model, trait, sampling, run, n_examples=10)
    training = pl.traits.load_written_examples("formality", "training")[:10]
    return Bench(model, trait, judges, training, measure_lengths(model, training), sampling, Stream.EVIDENCE, run, run)


@pytest.mark.slow
def test_everything_that_is_compared_is_as_long_as_the_choice(bench, monkeypatch):
    vector = pl.read_persona_vector(bench.model, "formality", bench.training)
    added = []

    def score(model, judge, conditions, questions, **kwargs):
        added.extend(conditions)
        return pl.score_conditions(model, judge, conditions, questions, **kwargs)

    monkeypatch.setattr("persona_lens.reproduction.bench.score_conditions", score)
    coefficient = bench.scale(vector, 1, 0.5)
    assert coefficient * float(vector.norms[1]) == pytest.approx(0.5 * float(bench.lengths[1]))
    setting = note_setting(vector, "written", 1, 0.5, coefficient, 50.0, 70.0)
    found = bench.compare({"written vector": (vector, setting)}, ("Why?", "Who?"), ("When?",), NullSize(2, 1), 1, 10)
    assert found.responses.conditions[:4] == ("unsteered", "system prompt", "written vector", "written vector, away")
    length = 0.5 * float(bench.lengths[1])
    steps = {
        condition.name: float((step.operation.direction * step.operation.coefficient).norm())
        for condition in added
        for step in condition.intervention.steps
    }
    for name in ("written vector", "written vector, away", "vector of evil", "vector of humorous"):
        assert steps[name] == pytest.approx(length, rel=1e-3)
    assert list(found.nulls) == ["shuffled labels", "random, equal coherence"]
    assert {len(one.conditions) for one in found.nulls.values()} == {2}
    assert all(list(by_judge) == list(found.scores) for by_judge in found.null_scores.values())
    assert found.null_step / 0.5 in (1.0, 1.5, 2.0, 3.0)


@pytest.mark.slow
def test_without_written_pairs_there_are_no_labels_to_shuffle(bench):
    vector = pl.read_persona_vector(bench.model, "formality", bench.training)
    setting = note_setting(vector, "written", 1, 0.5, bench.scale(vector, 1, 0.5), 50.0, 70.0)
    bare = replace(bench, training=())
    found = bare.compare({"written vector": (vector, setting)}, ("Why?",), ("When?",), NullSize(2, 1), 1, 10)
    assert list(found.nulls) == ["random, equal coherence"]
