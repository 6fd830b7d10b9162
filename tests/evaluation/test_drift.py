import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation import Condition, Course, Drift, converse, measure_drift
from persona_lens.evaluation.drift import LAST_PROMPT, LENGTH, REPETITION, RESPONSE, SURPRISE
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.text.chat import encode_conversation
from persona_lens.statistics import bootstrap_mean
from persona_lens.tensors import Add
from persona_lens.traits import UserScript
from tests.small_trait import LengthJudge
from tests.tiny import save_tiny

SCRIPTS = [
    UserScript(kind, (f"{topic}?", f"{kind}!", "Go on", "More"), topic)
    for kind in ("neutral", "kind")
    for topic in ("tea", "sea", "key")
]
SHIFT = pl.Intervention.of(1, Add(torch.randn(48, generator=torch.Generator().manual_seed(0)), 3.0))
LAYERS = {"loud": 1, "soft": 2}


@pytest.fixture(scope="module")
def vectors(tiny_model):
    info = pl.describe_model(tiny_model)
    made = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1))
    positions = ("response_mean", "prompt_mean", "last_prompt")
    return {
        name: pl.PersonaVector(name, info, dict.fromkeys(positions, one))
        for name, one in zip(LAYERS, made, strict=True)
    }


@pytest.fixture(scope="module")
def held(tiny_model):
    conditions = [Condition(name="plain"), Condition(SHIFT, name="shifted")]
    return converse(tiny_model, SCRIPTS, conditions, sampling=pl.Sampling(max_new_tokens=6, rollouts=2))


@pytest.fixture(scope="module")
def drift(tiny_model, held, vectors):
    return measure_drift(tiny_model, held, vectors, LAYERS, {"loud": [LengthJudge()]})


def test_every_turn_is_read_as_if_it_were_the_last_of_its_conversation(tiny_model, held, drift, vectors):
    """The oracle: each turn's own conversation, read by itself."""
    for c, s, turn in ((0, 0, 0), (0, 4, 3), (1, 2, 1)):
        spans = [
            encode_conversation(tiny_model.tokenizer, held.write_messages(c, s, r)[: 2 * turn + 2]) for r in range(2)
        ]
        read = dict(pool_residual_stream(tiny_model, spans))
        for name, layer in LAYERS.items():
            unit = vectors[name].unit(layer)
            for what, part in ((LAST_PROMPT, "last_prompt"), (RESPONSE, "response_mean")):
                expected = torch.stack([getattr(read[r], part)[layer] @ unit for r in range(2)]).mean()
                torch.testing.assert_close(drift.find(what, name).values[c, s, turn], expected, atol=1e-4, rtol=1e-4)
        surprise = -sum(mean_log_likelihoods(tiny_model, spans)) / 2
        assert float(drift.find(SURPRISE).values[c, s, turn]) == pytest.approx(surprise, abs=1e-4)


def test_what_acted_while_the_model_spoke_does_not_count_as_drift(tiny_model, held, vectors):
    """The same texts under two conditions read alike, whatever was done to draw them."""
    same = dataclasses.replace(held, responses=(held.responses[1],) * 2, n_tokens=held.n_tokens[[1, 1]])
    read = measure_drift(tiny_model, same, vectors, LAYERS, {})
    for course in read.courses:
        torch.testing.assert_close(course.values[0], course.values[1], equal_nan=True)
        if course.name != REPETITION:
            assert read.change(course, None, 1).estimate == read.level(course, None, 1).estimate == 0


def test_judges_score_each_response_to_its_own_turn(held, drift):
    expected = [LengthJudge().score([SCRIPTS[4].turns[2]], [held.responses[1][4][r][2]])[0].score for r in range(2)]
    assert float(drift.find("length", "loud").values[1, 4, 2]) == pytest.approx(sum(expected) / 2)
    assert drift.find("coherence", "loud").unit == "0 to 100"
    lengths = held.n_tokens[1, 4, :, 2].float().mean()
    assert drift.find(LENGTH).values[1, 4, 2] == lengths


@given(
    start=st.floats(-50, 50), slope=st.floats(-5, 5), missing=st.sets(st.integers(0, 5)), n=st.integers(6, 9)
)  # fmt: skip
def test_the_slope_of_a_line_is_its_own_whatever_turns_are_missing(start, slope, missing, n):
    values = (start + slope * torch.arange(n, dtype=torch.float64)).float()
    values[list(missing)] = torch.nan
    found = Course("a", "", "b", values.expand(1, 1, n).clone()).slopes
    if n - len(missing) < 3:
        assert found.isnan().all()
    else:
        assert float(found) == pytest.approx(slope, abs=1e-3)


def make(values, kinds, topics):
    """A drift of one course with those values by script."""
    scripts = tuple(UserScript(kind, ("a", "b", "c"), topic) for kind, topic in zip(kinds, topics, strict=True))
    info = pl.models.ModelInfo("tiny", 3, 48, 256, "float32", "hooked", "f", "none")
    n = len(scripts)
    texts = tuple((("x",) * 3,) for _ in range(n))
    held = pl.evaluation.Conversations(
        info, ("plain",), scripts, (texts,), torch.ones(1, n, 1, 3, dtype=torch.long), ((("",),) * n,)
    )
    values = torch.tensor(values)[None, :, None] * torch.arange(3.0)
    return Drift(held, "neutral", {}, (Course("a", "", "b", values),))


def test_slopes_are_paired_with_the_control_by_topic():
    made = make([1.0, 2.0, 4.0, 9.0, 7.0, 100.0], ["neutral"] * 3 + ["kind"] * 3, ["p", "q", "r", "r", "q", "s"])
    course = made.find("a")
    assert made.against_control(course, "kind") == bootstrap_mean(torch.tensor([5.0, 5.0]))
    assert made.level_against_control(course, "kind").estimate == 5.0
    assert made.slope(course, "neutral") == bootstrap_mean(torch.tensor([1.0, 2.0, 4.0]))
    assert made.slope(course, None).estimate == pytest.approx((1 + 4.5 + 6.5 + 100) / 4)
    assert made.against_control(course, "neutral").is_missing
    assert [one.estimate for one in made.by_turn(course, "neutral")] == pytest.approx([0, 7 / 3, 14 / 3])


def test_all_kinds_together_are_as_many_units_as_there_are_topics():
    one = make([1.0, 2.0, 6.0], ["neutral"] * 3, ["p", "q", "r"])
    five = make([1.0, 2.0, 6.0] * 5, [kind for kind in ("neutral", *"abcd") for _ in range(3)], ["p", "q", "r"] * 5)
    course = five.find("a")
    assert five.slope(course, None) == one.slope(one.find("a"), None) == bootstrap_mean(torch.tensor([1.0, 2.0, 6.0]))
    assert five.by_turn(course, None) == one.by_turn(one.find("a"), "neutral")
    scripts, values = five.conversations.scripts, torch.cat([course.values, 3 * course.values])
    twice = dataclasses.replace(
        five,
        conversations=dataclasses.replace(
            five.conversations,
            conditions=("plain", "thrice"),
            responses=five.conversations.responses * 2,
            n_tokens=torch.ones(2, len(scripts), 1, 3, dtype=torch.long),
            ends=five.conversations.ends * 2,
        ),
        courses=(dataclasses.replace(course, values=values),),
    )
    (course,) = twice.courses
    assert twice.change(course, None, 1) == bootstrap_mean(torch.tensor([2.0, 4.0, 12.0]))
    assert twice.level(course, None, 1) == bootstrap_mean(torch.tensor([2.0, 4.0, 12.0]))


def test_scripts_of_one_kind_on_one_topic_are_averaged_and_none_is_lost():
    made = make([1.0, 2.0, 3.0, 5.0, 11.0], ["neutral"] * 2 + ["kind"] * 3, ["p", "q", "p", "p", "q"])
    course = made.find("a")
    assert made.against_control(course, "kind") == bootstrap_mean(torch.tensor([3.0, 9.0]))
    assert made.slope(course, "kind") == bootstrap_mean(torch.tensor([4.0, 11.0]))


def test_scripts_without_a_topic_stand_for_themselves_and_have_no_pair():
    made = make([1.0, 2.0, 3.0, 5.0], ["neutral", "neutral", "kind", "kind"], [""] * 4)
    course = made.find("a")
    assert made.slope(course, None) == bootstrap_mean(torch.tensor([1.0, 2.0, 3.0, 5.0]))
    for measure in (made.against_control, made.level_against_control):
        with pytest.raises(InvalidArgumentError, match=r"`kind` must have a topic that 'neutral'.*`topic`"):
            measure(course, "kind")
    assert "no topic shared" in made._repr_html_()


def test_repetition_is_the_share_of_word_triples_of_the_response_before(tiny_model, held, vectors):
    texts = ("a b c d", "a B c e", "x y z", "x")
    same = dataclasses.replace(
        held, responses=((((texts),) * 2,) * len(SCRIPTS),) * 2, n_tokens=torch.ones_like(held.n_tokens)
    )
    values = measure_drift(tiny_model, same, vectors, LAYERS, {}).find(REPETITION).values[0, 0]
    torch.testing.assert_close(values, torch.tensor([torch.nan, 0.5, 0.0, torch.nan]), equal_nan=True)


def test_a_drift_comes_back_from_json_and_has_a_panel_a_course(drift):
    assert Drift.from_json(drift.to_json()).to_json() == drift.to_json()
    figure = drift.plot(1)
    assert len(figure.data) == 2 * len(drift.courses)
    assert "shifted" in figure.layout.title.text
    assert "slope a turn" in drift._repr_html_()


def test_what_cannot_be_measured_is_refused_by_name(tiny_model, tmp_path, held, drift, vectors):
    other = pl.load_model(save_tiny(tmp_path, "llama", seed=7), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        measure_drift(other, held, vectors, LAYERS, {})
    with pytest.raises(InvalidArgumentError, match="`vectors`"):
        measure_drift(tiny_model, held, {}, {}, {})
    with pytest.raises(InvalidArgumentError, match="`layers`"):
        measure_drift(tiny_model, held, vectors, {"loud": 1}, {})
    with pytest.raises(InvalidArgumentError, match="`control` must be a kind of user"):
        measure_drift(tiny_model, held, vectors, LAYERS, {}, control="calm")
    with pytest.raises(InvalidArgumentError, match="`name`"):
        drift.find("nothing")
    for wrong in (2, -1):
        with pytest.raises(InvalidArgumentError, match="`condition`"):
            drift.slope(drift.courses[0], "kind", wrong)
    with pytest.raises(InvalidArgumentError, match="`kind`"):
        drift.slope(drift.courses[0], "calm")
