from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError
from persona_lens.finetuning import choose_share, pull_back
from persona_lens.statistics import Interval
from tests.small_trait import LengthJudge

QUESTIONS = ["Why?", "When?", "What for?", "Which one?", "Who?", "How?"]
ROWS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]}
    for text in ("ababab", "xyz!", "so")
]
SAMPLING = pl.models.Sampling(6, 0.7, rollouts=2, seed=3)


class FirstLetterJudge(LengthJudge):
    """Another judge of the same texts."""

    name = "first letter"

    def score(self, questions, responses):
        return [replace(one, score=float(ord(text[0]) % 101) if text else None) for one, text in
                zip(super().score(questions, responses), responses, strict=True)]  # fmt: skip


JUDGES = (LengthJudge(), FirstLetterJudge())


def add_up(model):
    """Something that any change of the weights changes."""
    total = float(sum(one.detach().double().sum() for one in model.parameters()))
    return Interval(total, total, total)


@pytest.fixture(scope="module")
def found(tuned, tiny_model):
    return pull_back(tuned[0], tiny_model, [0.5], JUDGES, QUESTIONS, ROWS, capability=add_up, sampling=SAMPLING)


def test_the_ends_of_the_front_are_the_control_and_the_model(found, tuned, tiny_model):
    assert found.shares == (0.0, 0.5, 1.0)
    for share, model in ((0.0, tiny_model), (1.0, tuned[0])):
        index = found.shares.index(share)
        assert torch.equal(found.losses[index], pl.finetuning.measure_task_loss(model, ROWS))
        alone = pull_back(model, model, [], JUDGES, QUESTIONS, ROWS, sampling=SAMPLING)
        assert torch.equal(alone.scores[0], found.scores[index])
        assert found.capability[index] == add_up(model)
    assert not torch.equal(found.scores[0], found.scores[2])


def test_the_model_is_as_it_was_afterwards(found, tiny_folder, adapters, tuned):
    fresh = pl.load_model(tiny_folder("llama"), adapter=adapters[0], dtype="float32", device="cpu")
    for own, one in zip(tuned[0].parameters(), fresh.parameters(), strict=True):
        assert torch.equal(own, one)


def test_half_of_the_questions_choose_and_the_others_are_reported(found):
    assert found.is_choosing_question.sum() == 3
    judged = found.scores[:, :, ~found.is_choosing_question]
    for share, own in zip(found.shares, judged, strict=True):
        for judge in range(2):
            assert found.score(share, judge).estimate == pytest.approx(float(own[judge].mean()), rel=1e-5)
            rise = float((own[judge] - judged[0, judge]).mean())
            assert found.rise(share, judge).estimate == pytest.approx(rise, rel=1e-4, abs=1e-4)
    assert found.extra_loss(1.0).estimate == 0.0


def test_what_is_reported_does_not_change_the_choice_nor_does_a_second_judge(found):
    for extreme in (0.0, 100.0):
        scores = found.scores.clone()
        scores[1:, :, ~found.is_choosing_question] = extreme
        scores[1:, 1] = extreme
        assert replace(found, scores=scores).chosen == found.chosen
    scores = found.scores.clone()
    scores[1:, 0, found.is_choosing_question] = scores[0, 0, found.is_choosing_question] + 99.0
    assert replace(found, scores=scores).chosen == 0.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.floats(0, 100), st.floats(0, 100))
def test_the_largest_share_within_the_limit_is_chosen(others, control, max_rise):
    shares = [index / len(others) for index in range(len(others) + 1)]
    means = [control, *others]
    scores = torch.tensor(means, dtype=torch.float64)[:, None].expand(-1, 3)
    chosen = choose_share(shares, scores, max_rise)
    fitting = [share for share, row in zip(shares, scores, strict=True) if float((row - scores[0]).mean()) <= max_rise]
    assert chosen == max(fitting)


def test_a_share_without_any_score_is_not_chosen():
    nan = float("nan")
    assert choose_share([0.0, 0.5, 1.0], torch.tensor([[1.0, 2.0], [3.0, 4.0], [nan, nan]]), 10.0) == 0.5


def test_a_share_that_one_question_alone_speaks_for_is_not_chosen():
    nan = float("nan")
    scores = torch.tensor([[1.0, 2.0, nan], [3.0, 4.0, 5.0], [1.0, nan, 1.0]])
    assert choose_share([0.0, 0.5, 1.0], scores, 10.0) == 0.5


@pytest.mark.parametrize(
    ("parameter", "given"),
    [
        ("shares", ([0.0, 1.5], torch.zeros(2, 3), 10.0)), ("shares", ([0.0, float("nan")], torch.zeros(2, 3), 10.0)),
        ("scores", ([0.0, 1.0], torch.zeros(2, 1), 10.0)), ("max_rise", ([0.0, 1.0], torch.zeros(2, 3), float("nan"))),
        ("max_rise", ([0.0, 1.0], torch.zeros(2, 3), float("inf"))),
    ],
)  # fmt: skip
def test_what_no_share_can_be_chosen_on_is_refused(parameter, given):
    with pytest.raises(InvalidArgumentError, match=f"`{parameter}`"):
        choose_share(*given)


def test_more_is_tolerated_the_larger_the_limit(found):
    assert replace(found, max_rise=100.0).chosen == 1.0
    chosen = [replace(found, max_rise=float(limit)).chosen for limit in range(0, 101, 5)]
    assert chosen == sorted(chosen)


def test_a_front_goes_to_json_and_back_and_is_drawn(found):
    again = type(found).from_json(found.to_json())
    assert torch.equal(again.scores, found.scores)
    assert again.chosen == found.chosen
    figure = found.plot()
    assert [trace.name for trace in figure.data] == ["length", "first letter"]
    assert list(figure.data[0].text) == ["0", "0.5", "1"]
    assert f"share {found.chosen:g} chosen" in figure.layout.title.text


@pytest.mark.parametrize(
    ("parameter", "change"),
    [
        ("shares", {"shares": [0.5, 1.2]}), ("judges", {"judges": []}), ("questions", {"questions": QUESTIONS[:3]}),
        ("data", {"data": ROWS[:1]}), ("max_rise", {"max_rise": 101.0}),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_a_model_runs(tuned, tiny_model, monkeypatch, parameter, change):
    monkeypatch.setattr("persona_lens.finetuning.pulling_back.sample_rollouts", lambda *_: pytest.fail("it ran"))
    given = {"shares": [0.5], "judges": JUDGES, "questions": QUESTIONS, "data": ROWS, "max_rise": 10.0} | change
    limit = given.pop("max_rise")
    with pytest.raises(InvalidArgumentError, match=f"`{parameter}`"):
        pull_back(tuned[0], tiny_model, *given.values(), max_rise=limit)


def test_a_model_with_hooks_is_refused(tuned, tiny_model):
    tiny_model.add_hook("blocks.0.hook_resid_post", lambda value, hook: value)
    try:
        with pytest.raises(HooksPresentError):
            pull_back(tuned[0], tiny_model, [0.5], JUDGES, QUESTIONS, ROWS)
    finally:
        tiny_model.reset_hooks()


def test_a_share_that_was_not_tried_is_refused(found):
    with pytest.raises(InvalidArgumentError, match="`share`"):
        found.score(0.25)
    with pytest.raises(InvalidArgumentError, match="`judge`"):
        found.score(0.5, judge=2)
