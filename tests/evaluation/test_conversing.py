from unittest.mock import patch

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ContextLengthError, HooksPresentError, InvalidArgumentError
from persona_lens.evaluation import Condition, Conversations, converse
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.engine.sampling import sample_turn
from persona_lens.models.text.chat import encode_prompt
from persona_lens.models.text.padding import pad_right
from persona_lens.run import Run
from persona_lens.storage import ShardStore
from persona_lens.tensors import Add
from persona_lens.traits import UserScript
from tests.chat_templates import save_thinker
from tests.tiny import save_tiny

SCRIPTS = [UserScript("curt", ("Hi", "Why?", "And so?")), UserScript("kind", ("Dear", "Thanks!"))]
SAMPLING = pl.Sampling(max_new_tokens=6, rollouts=2, seed=3)
SHIFT = pl.Intervention.of(1, Add(torch.randn(48, generator=torch.Generator().manual_seed(0)), 3.0))
CONDITIONS = [
    Condition(name="plain"),
    Condition(SHIFT, name="shifted"),
    Condition(system="Be brief.", examples=({"role": "user", "content": "A"}, {"role": "assistant", "content": "B"})),
]


@pytest.fixture(scope="module")
def held(tiny_model):
    return converse(tiny_model, SCRIPTS, CONDITIONS, sampling=SAMPLING, stream=(9, 1))


def test_each_conversation_goes_as_if_it_were_held_alone(tiny_model, held):
    """The oracle: one turn after the other, each prompt computed whole."""
    for c, condition in enumerate(CONDITIONS):
        for s, script in enumerate(SCRIPTS):
            for r in range(2):
                before = list(condition.examples)
                for turn, said in enumerate(script.turns):
                    request = RolloutRequest(
                        said, (3, 9, 1, s, r, turn), condition.system, tuple(before), condition.intervention
                    )
                    (one,) = sample_rollouts(tiny_model, [request], SAMPLING)
                    if not one.response.strip():
                        assert held.ends[c][s][r] == "no answer"
                        break
                    assert held.responses[c][s][r][turn] == one.response
                    assert held.n_tokens[c, s, r, turn] == len(one.tokens)
                    before += [{"role": "user", "content": said}, {"role": "assistant", "content": one.response}]
                assert held.write_messages(c, s, r) == before[len(condition.examples) :]
                assert len(held.responses[c][s][r]) == len(held.write_messages(c, s, r)) // 2
    assert len({held.responses[c] for c in range(3)}) == 3
    assert held.n_ended < 4
    assert held.n_tokens[:, 1, :, 2:].sum() == 0


def test_no_token_of_a_conversation_is_computed_twice_as_a_prompt(tiny_model):
    computed = []

    def count(rows, **options):
        computed.extend(len(row) for row in rows)
        return pad_right(rows, **options)

    with patch("persona_lens.models.engine.prefixes.pad_right", side_effect=count):
        held = converse(tiny_model, SCRIPTS[:1], CONDITIONS[1:2], sampling=pl.Sampling(max_new_tokens=6, seed=3))
    assert held.n_ended == 0
    last = encode_prompt(tiny_model.tokenizer, held.write_messages(0, 0)[:-1])
    assert len(computed) == 3
    assert sum(computed) == len(last.tokens) - 1


def test_the_same_condition_twice_says_the_same_twice(tiny_model):
    twice = converse(tiny_model, SCRIPTS, [CONDITIONS[1]] * 2, sampling=SAMPLING)
    assert twice.responses[0] == twice.responses[1]


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_an_intervention_on_prompts_reaches_all_turns_of_them(tiny_model, positions):
    sampling = pl.Sampling(max_new_tokens=4, seed=3, positions=positions)
    held = converse(tiny_model, SCRIPTS[:1], [CONDITIONS[1]], sampling=sampling, stream=(9,))
    before = tuple(held.write_messages(0, 0)[:-2])
    (last,) = sample_rollouts(tiny_model, [RolloutRequest("And so?", (3, 9, 0, 0, 2), None, before, SHIFT)], sampling)
    assert held.responses[0][0][0][-1] == last.response


def test_a_conversation_that_fills_the_context_ends_there_by_name_and_the_others_go_on(tiny_model):
    long = UserScript("long", ("x" * 110, "y" * 110, "z"))
    held = converse(tiny_model, [long, SCRIPTS[1]], CONDITIONS[:1], sampling=SAMPLING)
    assert held.ends[0][0] == ("context full", "context full")
    assert [len(one) for one in held.responses[0][0]] == [1, 1]
    assert held.ends[0][1] == ("", "")
    assert held.n_ended == 2
    assert "2 ended early" in repr(held)


def test_a_first_turn_without_room_for_a_response_is_refused_before_any_is_sampled(tiny_model):
    scripts = [*SCRIPTS, UserScript("long", ("x" * 300,))]
    never = patch("persona_lens.models.engine.talks.sample_turn", side_effect=AssertionError)
    with never, pytest.raises(ContextLengthError):
        converse(tiny_model, scripts, CONDITIONS[:1])


def test_an_empty_answer_ends_a_conversation_by_name(tiny_model):
    silent = pl.Sampling(max_new_tokens=4, stop_tokens=frozenset(range(259)))
    held = converse(tiny_model, SCRIPTS, CONDITIONS[:1], sampling=silent)
    assert held.ends == ((("no answer",), ("no answer",)),)
    assert held.write_messages(0, 0) == []
    assert held.n_tokens.sum() == 0


def test_another_model_answers_where_a_condition_names_one(tiny_model, tmp_path):
    other = pl.load_model(save_tiny(tmp_path, "llama", seed=7), dtype="float32", device="cpu")
    held = converse(tiny_model, SCRIPTS, [Condition(model=other), Condition()], sampling=SAMPLING)
    assert held.responses[0] == converse(other, SCRIPTS, [Condition()], sampling=SAMPLING).responses[0]
    assert held.responses[0] != held.responses[1]


def test_finished_conversations_are_read_back_and_not_held_again(tiny_model, tmp_path):
    run = Run(ShardStore(tmp_path, {}))
    first = converse(tiny_model, SCRIPTS, CONDITIONS, sampling=SAMPLING, run=run)
    with patch("persona_lens.models.engine.talks.sample_turn", side_effect=AssertionError):
        again = converse(tiny_model, SCRIPTS, CONDITIONS, sampling=SAMPLING, run=run)
        assert again.to_json() == first.to_json() == Conversations.from_json(first.to_json()).to_json()
        with pytest.raises(AssertionError):
            converse(tiny_model, SCRIPTS[:1], CONDITIONS, sampling=SAMPLING, run=run)


def test_what_cannot_be_held_is_refused_by_name(tiny_model, held):
    with pytest.raises(InvalidArgumentError, match="`scripts`"):
        converse(tiny_model, [], CONDITIONS)
    with pytest.raises(InvalidArgumentError, match="`conditions`"):
        converse(tiny_model, SCRIPTS, [])
    with pytest.raises(InvalidArgumentError, match="d_model"):
        converse(tiny_model, SCRIPTS, [Condition(pl.Intervention.of(1, Add(torch.ones(7), 1.0)))])
    with pytest.raises(InvalidArgumentError, match="`script` must be in"):
        held.write_messages(0, 2)
    hooked = tiny_model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value)])
    with hooked, pytest.raises(HooksPresentError):
        converse(tiny_model, SCRIPTS, CONDITIONS)


def test_a_conditions_template_arguments_reach_its_prompts_and_one_that_nothing_reads_is_refused(tmp_path):
    model = pl.load_model(save_thinker(tmp_path, "qwen3"), dtype="float32", device="cpu")
    quick = Condition(name="no thought", template_arguments={"enable_thinking": False})
    asked = []

    def note(model, requests, *others):
        asked.extend(model.tokenizer.decode(one.prompt) for one in requests)
        return sample_turn(model, requests, *others)

    with patch("persona_lens.models.engine.talks.sample_turn", side_effect=note):
        converse(model, SCRIPTS[1:], [quick], sampling=pl.Sampling(max_new_tokens=4))
    assert asked
    assert all(one.endswith("</think>\n\n") for one in asked)
    with pytest.raises(InvalidArgumentError, match="unread"):
        converse(model, SCRIPTS, [Condition(template_arguments={"unread": 1})], sampling=SAMPLING)
