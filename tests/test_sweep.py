import json

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError, LayerOutOfRangeError
from persona_lens.sweep import LayerChoice
from persona_lens.tensors.interventions import Add
from persona_lens.tensors.statistics import Interval
from tests.small_trait import FixedJudge, tiny_trait


class LengthJudge:
    """Scores a response by its letters: a real function of the text, cheap and without a model."""

    name = "length"

    def score(self, questions, responses):
        return [
            pl.Judgement(float(sum(map(ord, r)) % 101), float(len(r) % 101)) if r else pl.Judgement(None, None, "empty")
            for r in responses
        ]


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


@pytest.fixture(scope="module")
def sweep(tiny_model, vector):
    return pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0, 3.0), judge=LengthJudge(), rollouts=2, max_new_tokens=5
    )


def test_a_sweep_has_a_score_for_every_setting(sweep):
    assert sweep.scores.shape == (3, 2, 4)
    assert sweep.null_scores.shape == (2, 1, 2, 4)
    assert sweep.null_layers == (1,)
    assert sweep.baseline_scores.shape == (4,)


def test_each_setting_is_steered_as_if_it_were_alone(tiny_model, vector, sweep):
    """The oracle: one configuration, sampled by itself."""
    from persona_lens.sweep import _SWEEP_STREAM

    site = pl.SiteIntervention(2, Add(vector.direction(2), 3.0))
    requests = [
        pl.RolloutRequest(question, (0, _SWEEP_STREAM, q, 0), interventions=(site,))
        for q, question in enumerate(sweep.questions)
    ]
    alone = pl.sample_rollouts(tiny_model, requests, pl.SamplingSettings(max_new_tokens=5))
    assert sweep.responses[2][1] == tuple(rollout.response for rollout in alone)


def test_a_sweep_survives_the_round_trip_through_json(sweep):
    again = pl.SweepResult.from_json(json.loads(json.dumps(sweep.to_json(), allow_nan=False)))
    torch.testing.assert_close(again.scores, sweep.scores, atol=1e-3, rtol=0, equal_nan=True)
    assert again.responses == sweep.responses
    assert again.model == sweep.model
    with pytest.raises(FileFormatError, match="scores"):
        pl.SweepResult.from_json({k: v for k, v in sweep.to_json().items() if k != "scores"})


def with_grid(sweep, scores, coherences):
    content = sweep.to_json()
    content["scores"] = [[[s] * 4 for s in row] for row in scores]
    content["coherences"] = [[[c] * 4 for c in row] for row in coherences]
    return pl.SweepResult.from_json(content)


def test_the_papers_rule_takes_the_highest_score_and_the_other_keeps_the_floor(sweep):
    made = with_grid(sweep, [[10, 20], [30, 90], [60, 40]], [[90, 90], [90, 20], [60, 90]])
    best, coherent = made.choose_by_score(), made.choose_coherent(50.0)
    assert (best.layer, best.coefficient, best.score.estimate) == (1, 3.0, 90)
    assert (coherent.layer, coherent.coefficient, coherent.score.estimate) == (2, 1.0, 60)
    assert made.choose_coherent(95.0) is None


def test_a_setting_without_scores_is_never_chosen(sweep):
    made = with_grid(sweep, [[10, None], [20, None], [5, None]], [[90, 90], [90, 90], [90, 90]])
    assert (made.choose_by_score().layer, made.choose_by_score().coefficient) == (1, 1.0)


def test_a_confirmation_measures_rise_and_margin(tiny_model, vector):
    choice = LayerChoice("by hand", 1, 2.0, Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0))
    result = pl.confirm_choice(
        tiny_model, vector, choice, questions=("Fresh?", "Newer?"), judge=LengthJudge(), rollouts=2,
        random_directions=2, max_new_tokens=4,
    )  # fmt: skip
    assert result.n_responses == (1 + 1 + 2) * 2 * 2
    assert result.rise.estimate == pytest.approx(result.steered.estimate - result.baseline.estimate, abs=1e-3)
    assert result.above_random.estimate == pytest.approx(result.steered.estimate - result.random.estimate, abs=1e-3)
    assert pl.Confirmation.from_json(json.loads(json.dumps(result.to_json()))).layer == 1


def test_responses_without_a_score_are_counted(tiny_model, vector):
    judge = FixedJudge((None, None, "x"), (None, None, "x"))
    result = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0,), layers=[0], judge=judge, max_new_tokens=2
    )
    assert result.n_unscored == (1 + 1 + 2) * 4


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"layers": [3]}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"layers": -1}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"questions": ()}, InvalidArgumentError, "`questions`"),
        ({"coefficients": ()}, InvalidArgumentError, "`coefficients`"),
        ({"coefficients": (1.0, 1.0)}, InvalidArgumentError, "differ"),
        ({"coefficients": (float("nan"),)}, InvalidArgumentError, "finite"),
        ({"rollouts": 0}, InvalidArgumentError, "`rollouts`"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(tiny_model, vector, kwargs, error, match, monkeypatch):
    monkeypatch.setattr("persona_lens.sweep.sample_rollouts", None)
    with pytest.raises(error, match=match):
        pl.sweep_layers(tiny_model, tiny_trait(), vector, judge=LengthJudge(), **kwargs)


def test_a_sweep_shows_itself(sweep):
    assert "best layer" in repr(sweep)
    assert "<table>" in sweep._repr_html_()
    figure = sweep.plot()
    assert figure.layout.yaxis.title.text.startswith("trait score")
    assert figure.layout.xaxis2.title.text.startswith("layer")


def test_a_judge_that_scores_nothing_leaves_a_result_that_says_so(tiny_model, vector):
    class SilentJudge:
        name = "silent"

        def score(self, questions, responses):
            return [pl.Judgement(None, None, "no opinion") for _ in questions]

    silent = pl.sweep_layers(
        tiny_model, tiny_trait(), vector, layers=1, coefficients=(1.0,), judge=SilentJudge(), max_new_tokens=2,
        random_directions=1,
    )  # fmt: skip
    assert silent.n_unscored == 3 * 4
    assert silent.choose_coherent() is None
    again = pl.SweepResult.from_json(json.loads(json.dumps(silent.to_json(), allow_nan=False)))
    assert "nan" in repr(again)
    assert len(again.plot().data) > 0
