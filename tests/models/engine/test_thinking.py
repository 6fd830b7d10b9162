"""A tiny model that thinks: the markers of its thoughts are made likely, the rest is random."""

from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, UnfinishedThoughtWarning
from persona_lens.models import (
    RolloutRequest,
    SampleRequest,
    Sampling,
    TokenSpans,
    sample_recorded_stream,
    sample_stream,
)
from persona_lens.models.engine.rollouts import sample_rollouts
from persona_lens.models.hooks.intervention import Intervention, Step
from persona_lens.models.hooks.windows import Window
from persona_lens.models.text import thoughts
from persona_lens.models.text.chat import build_messages, encode_prompt
from persona_lens.models.text.thoughts import ThoughtMarkers
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.tensors.operations import Add
from tests.backends import BACKENDS
from tests.chat_templates import load_thinker, make_likely, save_thinker
from tests.small_trait import LengthJudge, tiny_trait


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_thinker(tmp_path_factory.mktemp(name), name) for name in ("r1", "qwen3")}


@pytest.fixture(scope="module")
def thinkers(folders):
    return {name: load_thinker(folder, name) for name, folder in folders.items()}


@pytest.fixture
def speller(folders, monkeypatch):
    """A model whose markers are two characters, that are no tokens of their own."""
    monkeypatch.setattr(thoughts, "KNOWN_MARKERS", (ThoughtMarkers("(", ")!"),))
    model = pl.load_model(folders["r1"], backend=BACKENDS[0], dtype="float32", device="cpu")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{# )! #}("
    make_likely(model, [")", "!", "Ġ"], 0.25)
    return model


def ask_often(model, sampling, intervention=None, n=24):
    prompt = encode_prompt(model.tokenizer, build_messages("Hi")).tokens
    sampling = replace(sampling, stop_tokens=stop_token_ids(model.tokenizer) & set(range(256, 300)))
    more = {} if intervention is None else {"intervention": intervention}
    requests = [SampleRequest(prompt, (seed,), **more) for seed in range(n)]
    found = dict(sample_recorded_stream(model, requests, sampling))
    spans = [
        replace(
            TokenSpans.join(prompt, found[i].tokens),
            thought=None if found[i].thought is None else found[i].thought.shift(len(prompt)),
        )
        for i in range(n)
    ]
    return [found[i] for i in range(n)], spans


@pytest.mark.parametrize("part", ["answer", "thought", "response"])
@pytest.mark.parametrize("name", ["r1", "qwen3", "speller"])
def test_the_part_that_is_pooled_while_sampling_is_that_of_a_second_reading(thinkers, request, name, part):
    model = request.getfixturevalue("speller") if name == "speller" else thinkers[name]
    responses, spans = ask_often(model, Sampling(max_new_tokens=20, pooled=part))
    has_part = [bool(one.is_part(part).any()) for one in spans]
    assert sum(has_part) > 5
    assert any(one.is_unfinished for one in responses)
    assert any(one.thought is not None and one.thought.is_finished for one in responses)
    assert [one.residuals is not None for one in responses] == has_part
    kept = [i for i in range(len(spans)) if has_part[i]]
    for at, means in pl.models.pool_residual_stream(model, [spans[i] for i in kept], part=part):
        own = responses[kept[at]].residuals
        torch.testing.assert_close(own.response_mean, means.response_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own.prompt_mean, means.prompt_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own.last_prompt, means.last_prompt, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["answer", "thought"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ["r1", "speller"])
def test_steering_a_part_while_sampling_is_steering_the_tokens_that_draw_it(thinkers, request, name, positions, window):
    model = request.getfixturevalue("speller") if name == "speller" else thinkers[name]
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    intervention = Intervention((Step(1, Add(direction, 2.0)),), None)
    if window is not None:
        intervention = intervention.during(Window(stop=window))
    sampling = Sampling(max_new_tokens=16, pooled="response", positions=positions)
    responses, spans = ask_often(model, sampling, intervention, n=10)
    steered = 0
    for response, one in zip(responses, spans, strict=True):
        if response.residuals is None:
            continue
        mask = one.draws_part(positions)
        if window is not None:
            mask &= mask.cumsum(0) <= window
        steered += int(mask.any())
        hooks = pl.interventions.intervention_hooks(
            Intervention((Step(1, Add(direction, 2.0)),), None), positions=mask[None]
        )
        with pl.hooked(model, hooks):
            residual = pl.cache_residual_stream(model, torch.tensor([one.tokens]))[:, 0]
        expected = residual[:, one.response_start :].mean(dim=1)
        torch.testing.assert_close(response.residuals.response_mean, expected, rtol=1e-3, atol=1e-3)
    assert steered > 3


def test_a_thought_has_its_own_tokens_besides_the_answers(thinkers):
    sampling = Sampling(max_new_tokens=3, max_thought_tokens=6)
    responses, _ = ask_often(thinkers["r1"], sampling, n=60)
    lengths = set()
    for one in responses:
        closed = len(one.tokens) if one.thought.closed is None else one.thought.closed
        assert len(one.tokens) - min(closed, 6) <= 3
        assert (one.stop_reason == "length") == (len(one.tokens) - min(closed, 6) == 3)
        lengths.add(len(one.tokens))
    assert max(lengths) == 9
    assert min(lengths) < 9


@pytest.mark.parametrize("name", ["positions", "pooled", "judged"])
def test_thoughts_are_refused_by_name_for_a_model_that_has_none(tiny_model, name):
    with pytest.raises(InvalidArgumentError, match=f"`{name}`.*another part"):
        next(sample_stream(tiny_model, [SampleRequest((5, 6), (0,))], Sampling(**{name: "thought"})))


def test_the_usual_settings_are_recorded_as_before_there_were_thoughts():
    assert not {"pooled", "judged", "max_thought_tokens"} & Sampling().to_json().keys()
    assert Sampling(judged="thought").to_json()["judged"] == "thought"


def test_rollouts_hold_the_answer_and_unfinished_thoughts_are_said_and_empty(thinkers):
    model = thinkers["r1"]
    requests = [RolloutRequest("Hi", (seed,)) for seed in range(24)]
    with pytest.warns(UnfinishedThoughtWarning, match=r"of 24 responses are thoughts .* within 14 tokens"):
        rollouts = sample_rollouts(model, requests, Sampling(max_new_tokens=14))
    unfinished = [one for one in rollouts if one.is_unfinished]
    assert unfinished
    assert all(one.response == "" and one.thought_text for one in unfinished if one.tokens)
    for one in rollouts:
        if not one.is_unfinished:
            assert one.response == model.tokenizer.decode(
                one.tokens[one.thought.answer_start :], skip_special_tokens=True
            )
    with pytest.warns(UnfinishedThoughtWarning):
        thought = sample_rollouts(model, requests, Sampling(max_new_tokens=14, judged="thought"))
    assert [one.response for one in thought] == [one.thought_text for one in rollouts]


@pytest.mark.filterwarnings("ignore::persona_lens.errors.UnfinishedThoughtWarning")
def test_pairs_with_an_unfinished_thought_are_counted_unless_the_thought_is_what_counts(thinkers):
    model = thinkers["r1"]
    sampling = Sampling(max_new_tokens=10, rollouts=2)
    answers = pl.extract_persona_vector(model, tiny_trait(), judge="none", sampling=sampling)
    assert answers.counts.dropped_unfinished > 0
    sampling = replace(sampling, pooled="thought", judged="thought")
    vector = pl.extract_persona_vector(model, tiny_trait(), judge="none", sampling=sampling)
    assert vector.counts.dropped_unfinished == 0
    assert vector.counts.kept > answers.counts.kept
    assert vector.provenance["pooled"] == "thought"


@pytest.mark.filterwarnings("ignore::persona_lens.errors.UnfinishedThoughtWarning")
def test_conditions_count_the_responses_that_hold_no_answer(thinkers):
    scores = pl.score_conditions(
        thinkers["r1"], LengthJudge(), [pl.Condition(name="plain")], ["Hi", "Who?"], sampling=Sampling(10, rollouts=6)
    )
    texts = [text for condition in scores.responses for question in condition for text in question]
    assert 0 < scores.n_unfinished <= texts.count("")
    assert pl.evaluation.ConditionScores.from_json(scores.to_json()).n_unfinished == scores.n_unfinished


def test_a_model_keeps_its_template_arguments_and_says_them(folders):
    off = {"enable_thinking": False}
    model = pl.load_model(folders["qwen3"], dtype="float32", device="cpu", template_arguments=off)
    assert pl.describe_model(model).name.endswith(' {"enable_thinking": false}')
    assert encode_prompt(model.tokenizer, build_messages("Hi")).text.endswith("</think>\n\n")
    assert {258, 7} <= stop_token_ids(model.tokenizer)  # the generation configuration's list
    again = pl.load_model(model, template_arguments={})
    assert again is model
    assert "{" not in pl.describe_model(model).name
    assert {258, 7} <= stop_token_ids(model.tokenizer)
    with pytest.raises(InvalidArgumentError, match="takes enable_thinking"):
        pl.load_model(folders["qwen3"], template_arguments={"thinking": False})


def test_each_condition_has_template_arguments_of_its_own_and_they_are_recorded(folders, monkeypatch):
    model = pl.load_model(folders["qwen3"], dtype="float32", device="cpu")
    off = {"enable_thinking": False}
    ways = [pl.Condition(name="as it is"), pl.Condition(name="no thought", template_arguments=off)]
    sampling = Sampling(8, stop_tokens=frozenset({1}))
    together = pl.score_conditions(model, LengthJudge(), ways, ["Hi"], sampling=sampling).responses
    plain = pl.score_conditions(model, LengthJudge(), ways[:1], ["Hi"], sampling=sampling).responses
    pl.load_model(model, template_arguments=off)
    assert together == plain + pl.score_conditions(model, LengthJudge(), ways[:1], ["Hi"], sampling=sampling).responses
    assert together[0] != together[1]
    assert [one.describe().get("template_arguments") for one in ways] == [None, '{"enable_thinking": false}']
    monkeypatch.setattr("persona_lens.evaluation.conditions.sample_rollouts", lambda *given: pytest.fail("sampled"))
    wrong = pl.Condition(template_arguments={"thinking": False})
    with pytest.raises(InvalidArgumentError, match="takes enable_thinking"):
        pl.score_conditions(model, LengthJudge(), [wrong], ["Hi"], sampling=sampling)


@pytest.mark.filterwarnings("ignore::persona_lens.errors.UnfinishedThoughtWarning")
def test_ask_returns_the_answer_or_what_else_is_wanted(thinkers):
    model, n_answers = thinkers["r1"], 0
    for seed in range(6):
        sampling = Sampling(max_new_tokens=24, seed=seed)
        answer, thought, both = (
            pl.ask(model, "Hi", sampling=replace(sampling, judged=part)) for part in ("answer", "thought", "response")
        )
        if thought:
            assert both == "\n\n".join(filter(None, (thought, answer)))
        n_answers += bool(answer and thought)
    assert n_answers > 0


def test_ask_takes_template_arguments_and_says_that_a_thought_does_not_end(thinkers):
    model = thinkers["r1"]
    with pytest.raises(InvalidArgumentError, match="which takes none"):
        pl.ask(model, "Hi", template_arguments={"enable_thinking": False})
    with pytest.warns(UnfinishedThoughtWarning, match="1 of 1 responses"):
        assert pl.ask(model, "Hi", sampling=Sampling(max_new_tokens=1, stop_tokens=frozenset({1}))) == ""
