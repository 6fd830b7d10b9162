from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import (
    ContextLengthError,
    ControlTextWarning,
    HooksPresentError,
    InvalidArgumentError,
    ModelMismatchError,
)
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.monitoring import (
    AnotherAnswer,
    AnswerReading,
    InNumbers,
    InWords,
    OtherMonitor,
    OwnAnswer,
    PersonaMonitor,
    ReflectedConversations,
    Reflection,
    Remind,
    SayNothing,
    read_answers,
    reflect,
)
from persona_lens.run import Run
from persona_lens.storage import ShardStore
from persona_lens.tensors import Add
from persona_lens.traits import UserScript
from tests.interventions.test_steering import make_vector
from tests.monitoring.examples import LAYERS, ORDINARY
from tests.small_trait import LengthJudge
from tests.tiny import save_tiny

SCRIPTS = [UserScript("a", ("Hi", "Why?", "So?")), UserScript("b", ("You", "No!")), UserScript("c", ("And", "Ok", "I"))]
SAMPLING = pl.Sampling(max_new_tokens=9, rollouts=2, seed=3)
REFLECTIONS = [
    Reflection(SayNothing(), name="none"),
    Reflection(Remind("Be kind."), name="reminder"),
    Reflection(InWords("Well."), name="words"),
    Reflection(InNumbers(), AnotherAnswer(), "placebo"),
]


@pytest.fixture(scope="module")
def model(roomy_folder):
    return pl.load_model(roomy_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def monitor(model):
    vectors = {"loud": make_vector(model), "very_shy": make_vector(model, 1, "shy")}
    layers = {"loud": LAYERS["loud"], "very_shy": LAYERS["shy"]}
    return PersonaMonitor.calibrate(model, vectors, layers, ordinary=ORDINARY, responses=SAMPLING)


@pytest.fixture(scope="module")
def held(model, monitor):
    return reflect(model, monitor, SCRIPTS, REFLECTIONS, sampling=SAMPLING)


@pytest.mark.slow
def test_each_conversation_goes_as_if_it_were_held_alone_with_its_notes_in_the_users_turns(model, held):
    """The oracle: one turn after the other, each prompt computed whole."""
    places = [(c, s, r) for c in range(4) for s in range(3) for r in range(2)]
    assert not held.n_ended
    for c, s, r in places[::5]:
        messages = held.write_messages(c, s, r)
        for turn in range(len(SCRIPTS[s].turns)):
            before, (asked, answer) = tuple(messages[: 2 * turn]), messages[2 * turn : 2 * turn + 2]
            request = RolloutRequest(asked["content"], (3, 380, s, r, turn), None, before)
            (alone,) = sample_rollouts(model, [request], SAMPLING)
            assert answer["content"] == alone.response
            assert held.n_tokens[c, s, r, turn] == len(alone.tokens)


def test_nothing_is_told_before_the_first_turn_and_all_go_on_from_one_first_answer(held):
    assert all(notes[0] == "" for condition in held.notes for script in condition for notes in script)
    assert held.given[..., 0].isnan().all()
    for condition in held.responses[1:]:
        assert [[r[0] for r in script] for script in condition] == [[r[0] for r in s] for s in held.responses[0]]
    assert held.responses[0] != held.responses[1]


def test_what_is_told_is_the_reading_of_the_answer_before_without_what_was_told(model, monitor, held):
    for turn in (1, 2):
        plain = [
            message
            for said, response in zip(SCRIPTS[0].turns[:turn], held.responses[2][0][1], strict=False)
            for message in ({"role": "user", "content": said}, {"role": "assistant", "content": response})
        ]
        (readings,) = read_answers(model, monitor, [plain])
        assert held.notes[2][0][1][turn] == InWords("Well.").write(readings)
        for index, reading in enumerate(readings):
            assert held.projections[index, 2, 0, 1, turn - 1] == pytest.approx(reading.projection, abs=1e-4)
            assert held.given[index, 2, 0, 1, turn] == pytest.approx(reading.quantile)
    assert held.write_messages(2, 0, 1)[2]["content"] == f"({held.notes[2][0][1][1]})\n\nWhy?"


def test_an_answers_reading_is_its_tokens_mean_projection(model, monitor):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Certainly."}]
    (readings,) = read_answers(model, monitor, [chat])
    spans = pl.models.encode_conversation(model.tokenizer, chat)
    resid = pl.cache_residual_stream(model, torch.tensor([spans.tokens]))[
        :, 0, spans.response_start : spans.response_end
    ]
    for trait, reading in zip(monitor.traits, readings, strict=True):
        assert reading.projection == pytest.approx(float((resid[trait.layer] @ trait.unit).mean()), abs=1e-4)
        lower = sum(mean < reading.projection for mean in trait.responses.means)
        assert reading.quantile == lower / len(trait.responses.means)


def test_a_placebo_deals_the_readings_of_other_conversations_each_once(held):
    first, told = held.quantiles[:, 3, :, :, 0], held.given[:, 3, :, :, 1]
    for rollout in range(2):
        own, given_ = (one[:, :, rollout].T.tolist() for one in (first, told))
        assert sorted(own) == sorted(given_)
        assert all(mine != theirs for mine, theirs in zip(own, given_, strict=True))


@given(st.integers(0, 40), st.integers(0, 9))
def test_nobody_is_dealt_their_own_reading_and_the_only_one_is_told_nothing(n, seed):
    readings = [(AnswerReading("loud", float(i), 0.5),) for i in range(n)]
    chosen = AnotherAnswer().choose(readings, lambda monitor: [], (seed,))
    if n == 1:
        assert chosen == [None]
    else:
        assert sorted(one[0].projection for one in chosen) == list(range(n))
        assert all(mine is not theirs for mine, theirs in zip(readings, chosen, strict=True))
    assert OwnAnswer().choose(readings, lambda monitor: [], (seed,)) == readings


def test_a_placebo_is_dealt_among_conversations_that_go_on_and_the_last_one_is_told_nothing(model, monitor):
    scripts = [SCRIPTS[0], SCRIPTS[1], replace(SCRIPTS[2], turns=("And", "Ok"))]
    told = reflect(model, monitor, scripts, REFLECTIONS[3:], sampling=SAMPLING)
    assert not told.n_ended
    for rollout in range(2):
        assert sorted(told.given[0, 0, :, rollout, 1].tolist()) == sorted(told.quantiles[0, 0, :, rollout, 0].tolist())
        assert told.notes[0][0][rollout][2] == ""
    assert told.given[..., 2].isnan().all()


@pytest.mark.slow
def test_a_reading_by_another_monitor_is_told_and_the_own_one_is_measured(model, monitor, held):
    other = replace(monitor, traits=(replace(monitor.traits[0], unit=-monitor.traits[0].unit),))
    turned = reflect(model, monitor, SCRIPTS, [Reflection(InNumbers(), OtherMonitor(other))], sampling=SAMPLING)
    assert turned.projections[:, 0, :, :, 0].equal(held.projections[:, 0, :, :, 0])
    assert f"measured {-float(held.projections[0, 0, 1, 0, 0]):.2f} on loud" in turned.notes[0][1][0][1]
    assert "shy" not in turned.notes[0][1][0][1]


@pytest.mark.parametrize(
    ("quantile", "leaning"),
    [
        (0.0, "strongly away from"),
        (0.2, "leaned away from"),
        (0.5, "neither"),
        (0.9, "leaned towards"),
        (1.0, "strongly t"),
    ],
)
def test_words_say_how_far_from_the_ordinary_an_answer_lies_and_numbers_say_it_in_hundredths(quantile, leaning):
    readings = (AnswerReading("loud", -1.239, quantile), AnswerReading("very_shy", 0.0, 0.5))
    words = InWords().write(readings)
    assert words.startswith("Your last answer leaned")
    assert leaning in words.partition(".")[0]
    assert words.endswith(". It leaned neither towards nor away from very shy.")
    numbers = InNumbers("End.").write(readings)
    assert f"measured -1.24 on loud, higher than {round(100 * quantile)} of 100 ordinary answers." in numbers
    assert numbers.endswith(" End.")


def test_values_are_compared_from_the_second_answer_on_paired_by_script(held):
    values = torch.arange(4.0)[:, None, None, None].expand(held.n_tokens.shape).clone()
    values[..., 0] = 100  # before anything was told
    values[1, 0] = torch.nan
    found = held.compare(values, 3, 1)
    assert (found.estimate, found.low, found.high) == (2.0, 2.0, 2.0)
    assert held.compare(held.projections[0], 0, 0).estimate == 0


def test_a_conversation_that_ends_early_is_compared_as_far_as_it_goes(held):
    values = torch.arange(3.0).expand(held.n_tokens.shape).clone()
    values[1, ..., 2] = torch.nan
    found = held.compare(values, 1, 0)
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_judge_scores_what_was_answered_to_what_was_asked_without_the_note(held):
    asked = []

    class Noting(LengthJudge):
        def score(self, questions, responses):
            asked.extend(questions)
            return super().score(questions, responses)

    scores = held.score(Noting())
    assert scores.isnan().equal(held.n_tokens == 0)
    assert set(asked) == {turn for script in SCRIPTS for turn in script.turns}


@pytest.mark.slow
def test_finished_conversations_are_read_back_and_another_wording_holds_only_its_own(model, monitor, tmp_path):
    run = Run(ShardStore(tmp_path, {}))
    first = reflect(model, monitor, SCRIPTS, REFLECTIONS[2:3], sampling=SAMPLING, run=run)
    with patch("persona_lens.models.engine.talks.sample_turn", side_effect=AssertionError):
        again = reflect(model, monitor, SCRIPTS, REFLECTIONS[2:3], sampling=SAMPLING, run=run)
        assert again.to_json() == first.to_json() == ReflectedConversations.from_json(first.to_json()).to_json()
        with pytest.raises(AssertionError):
            reflect(model, monitor, SCRIPTS, [Reflection(InWords("Other."))], sampling=SAMPLING, run=run)


@pytest.mark.slow
def test_a_wording_and_a_source_of_ones_own_are_conditions_too(model, monitor):
    @dataclass(frozen=True)
    class Grade:
        def write(self, readings):
            return "A" if readings[0].quantile < 0.5 else "F"

    told = reflect(model, monitor, SCRIPTS[:1], [Reflection(Grade())], sampling=SAMPLING)
    assert set(told.notes[0][0][0][1:]) <= {"A", "F"}


@pytest.mark.slow
def test_an_intervention_acts_on_the_answers_and_not_on_their_reading(model, monitor, held):
    shift = pl.Intervention.of(1, Add(monitor.traits[0].unit, 30.0))
    steered = reflect(model, monitor, SCRIPTS[:1], REFLECTIONS[:1], sampling=SAMPLING, intervention=shift)
    assert steered.responses[0][0] != held.responses[0][0]
    (readings,) = read_answers(model, monitor, [steered.write_messages(0, 0)])
    assert steered.projections[0, 0, 0, 0, -1] == pytest.approx(readings[0].projection, abs=1e-4)


def test_an_answer_may_end_where_the_context_does_without_room_for_what_the_template_closes_it_with(model, monitor):
    def chat(n):
        return [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": "Yes."}]

    room = model.cfg.n_ctx - pl.models.encode_conversation(model.tokenizer, chat(1)).response_end
    assert len(pl.models.encode_conversation(model.tokenizer, chat(room + 1)).tokens) > model.cfg.n_ctx
    assert read_answers(model, monitor, [chat(room + 1)])
    with pytest.raises(ContextLengthError, match=r"`conversations\[1\]`"):
        read_answers(model, monitor, [chat(1), chat(room + 2)])


@pytest.mark.parametrize("slack", range(4))
def test_an_answer_that_no_longer_fits_once_it_is_rendered_anew_ends_its_conversation_by_name(model, monitor, slack):
    prompt = pl.models.encode_prompt(model.tokenizer, [{"role": "user", "content": "x"}])
    said = "x" * (model.cfg.n_ctx - SAMPLING.max_tokens - len(prompt.tokens) + 1 - slack)
    ended = reflect(model, monitor, [UserScript("long", (said,)), SCRIPTS[1]], REFLECTIONS[:1], sampling=SAMPLING)
    for rollout, responses in enumerate(ended.responses[0][0]):
        assert ended.ends[0][0][rollout] == ("" if responses else "context full")
        assert ended.projections[0, 0, 0, rollout, 0].isfinite() == bool(responses)
    assert ended.ends[0][1] == ("", "")


def test_control_tokens_that_a_note_spells_are_warned_of(model, monitor):
    said = Reflection(Remind(f"Be kind.{model.tokenizer.eos_token}"))
    with pytest.warns(ControlTextWarning, match="ordinary text"):
        reflect(model, monitor, SCRIPTS[:1], [said], sampling=SAMPLING)


@pytest.mark.slow
def test_a_conversation_that_ends_early_does_so_by_name_and_is_shown_so(model, monitor):
    long = UserScript("long", ("x" * 450, "y" * 450, "z" * 50))
    ended = reflect(model, monitor, [long, SCRIPTS[1]], REFLECTIONS[3:], sampling=SAMPLING)
    assert ended.ends[0][0] == ("context full", "context full")
    assert ended.ends[0][1] == ("", "")
    assert "2 ended early" in repr(ended)
    silent = replace(SAMPLING, stop_tokens=frozenset(range(259)))
    nothing = reflect(model, monitor, SCRIPTS, REFLECTIONS[2:], sampling=silent)
    assert nothing.n_ended == 12
    assert nothing.projections.isnan().all()


def test_a_wording_or_a_source_of_ones_own_is_refused_by_name_where_it_does_not_do_its_work(model, monitor):
    @dataclass(frozen=True)
    class Own:
        part: object = None
        least_conversations = 1

        def write(self, readings):
            return None

        def choose(self, readings, read, seed):
            return [*readings, None]

    @dataclass
    class Loose:
        def write(self, readings):
            return ""

    for name, refused in (
        ("wording", lambda: Reflection(Loose())),
        ("wording", lambda: Reflection(Own(torch.ones(2)))),
        ("source", lambda: Reflection(source=Own(InWords()))),
        ("wording", lambda: reflect(model, monitor, SCRIPTS[1:2], [Reflection(Own())], sampling=SAMPLING)),
        ("source", lambda: reflect(model, monitor, SCRIPTS[1:2], [Reflection(source=Own())], sampling=SAMPLING)),
    ):
        with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
            refused()


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan")])
def test_a_reading_is_a_number_among_ordinary_ones(monitor, quantile):
    with pytest.raises(InvalidArgumentError, match="`quantile`"):
        AnswerReading("loud", 0.0, quantile)
    with pytest.raises(InvalidArgumentError, match="`mean`"):
        monitor.traits[0].responses.rank_response(float("nan"))


def test_the_table_shows_what_was_told_and_escapes_what_was_said(held):
    table = held._repr_html_()
    assert "Be kind." in table
    assert "4 reflections × 3 scripts × 2 rollouts" in table
    said = replace(held, responses=tuple(tuple(tuple(("<b>",) * 3 for _ in s) for s in c) for c in held.responses))
    assert "<b>" not in said._repr_html_()


def test_what_cannot_be_held_is_refused_by_name_before_the_model_runs(model, monitor, held, tmp_path):
    with patch("persona_lens.models.engine.talks.sample_turn", side_effect=AssertionError):
        for name, scripts, reflections in (
            ("scripts", [], REFLECTIONS),
            ("reflections", SCRIPTS, []),
            ("scripts", SCRIPTS[:1], REFLECTIONS),
        ):
            with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
                reflect(model, monitor, scripts, reflections, sampling=SAMPLING)
        with pytest.raises(ContextLengthError):
            reflect(model, monitor, [UserScript("long", ("x" * 1100,))], sampling=SAMPLING)
        with pytest.raises(InvalidArgumentError, match="unread"):
            reflect(model, monitor, SCRIPTS, sampling=SAMPLING, template_arguments={"unread": 1})
        other = pl.load_model(save_tiny(tmp_path, "llama", seed=7), dtype="float32", device="cpu")
        with pytest.raises(ModelMismatchError):
            reflect(other, monitor, SCRIPTS, sampling=SAMPLING)
        foreign = replace(monitor, model=pl.describe_model(other))
        with pytest.raises(ModelMismatchError):
            reflect(model, monitor, SCRIPTS, [Reflection(source=OtherMonitor(foreign))], sampling=SAMPLING)
        hooked = model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value)])
        with hooked, pytest.raises(HooksPresentError):
            reflect(model, monitor, SCRIPTS, sampling=SAMPLING)
    unmeasured = replace(monitor, traits=tuple(replace(one, responses=None) for one in monitor.traits))
    for refused in (
        lambda: reflect(model, unmeasured, SCRIPTS),
        lambda: read_answers(model, unmeasured, [held.write_messages(0, 0)]),
        lambda: OtherMonitor(unmeasured),
    ):
        with pytest.raises(InvalidArgumentError, match="Calibrate it anew"):
            refused()
    with pytest.raises(InvalidArgumentError, match="`means`"):
        replace(monitor.traits[0].responses, means=()).rank_response(0.0)
    with pytest.raises(InvalidArgumentError, match="`conversations`"):
        read_answers(model, monitor, [])
    with pytest.raises(InvalidArgumentError, match="`text`"):
        Remind(" ")
    with pytest.raises(InvalidArgumentError, match="`wording`"):
        Reflection(InWords)
    with pytest.raises(InvalidArgumentError, match="`script` must be in"):
        held.write_messages(0, 3)
    with pytest.raises(InvalidArgumentError, match="`other` must be in"):
        held.compare(held.projections[0], 0, 4)
    with pytest.raises(InvalidArgumentError, match="`values`"):
        held.compare(held.projections[0][:1], 0)
