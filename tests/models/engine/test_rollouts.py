import pytest
import torch

import persona_lens as pl
from persona_lens.models.engine.rollouts import sample_recorded_rollouts
from persona_lens.tensors.operations import Add

STOPS = frozenset(range(30))


def requests(n):
    return [pl.models.RolloutRequest("Who?" * (1 + i % 3), (i,), "Shout!" if i % 2 else None) for i in range(n)]


@pytest.mark.parametrize("sample", [pl.models.sample_rollouts, sample_recorded_rollouts])
def test_rollouts_come_in_the_order_asked_whichever_ends_first(tiny_model, sample):
    asked = requests(8)
    settings = pl.Sampling(max_new_tokens=20, stop_tokens=STOPS, batch_size=3)
    found = sample(tiny_model, asked, settings)
    assert len({len(rollout.tokens) for rollout in found}) > 2  # they do not all end at once
    for request, rollout in zip(asked, found, strict=True):
        (alone,) = pl.models.sample_rollouts(tiny_model, [request], settings)
        assert rollout.request is request
        assert (rollout.tokens, rollout.response) == (alone.tokens, alone.response)


def test_responses_end_at_the_tokenizers_own_stop_tokens_unless_others_are_given(tiny_model, monkeypatch):
    monkeypatch.setattr("persona_lens.models.engine.rollouts.stop_token_ids", lambda tokenizer: STOPS)
    own = pl.models.sample_rollouts(tiny_model, requests(8), pl.Sampling(max_new_tokens=20))
    assert "stop" in {rollout.stop_reason for rollout in own}
    assert not any(STOPS & set(rollout.tokens) for rollout in own)
    others = pl.Sampling(max_new_tokens=20, stop_tokens=frozenset({200}))
    assert any(STOPS & set(rollout.tokens) for rollout in pl.models.sample_rollouts(tiny_model, requests(8), others))


def test_special_tokens_are_no_part_of_a_responses_text(tiny_model):
    special = set(tiny_model.tokenizer.all_special_ids)
    settings = pl.Sampling(max_new_tokens=40, temperature=3.0, stop_tokens=frozenset({0}))
    found = pl.models.sample_rollouts(tiny_model, requests(30), settings)
    assert any(special & set(rollout.tokens) for rollout in found)
    assert not any("<|" in rollout.response for rollout in found)


def test_a_rollouts_interventions_and_system_prompt_act(tiny_model):
    """The oracle: the ordinary forward pass with a hook that adds the direction from the last prompt token on."""
    direction = 3 * torch.randn(48, generator=torch.Generator().manual_seed(0))
    settings = pl.Sampling(max_new_tokens=8, temperature=0.0, stop_tokens=frozenset({258}))
    shift = pl.Intervention.of(1, Add(direction, 2.0))
    asked = [
        pl.models.RolloutRequest("Who?", (0,), "Shout!", intervention=shift),
        pl.models.RolloutRequest("Who?", (0,), "Shout!"),
    ]
    steered, plain = pl.models.sample_rollouts(tiny_model, asked, settings)
    messages = [{"role": "system", "content": "Shout!"}, {"role": "user", "content": "Who?"}]
    prompt = pl.models.encode_prompt(tiny_model.tokenizer, messages).tokens
    for found, coefficient in ((steered, 2.0), (plain, 0.0)):

        def add(residual, hook, coefficient=coefficient):
            residual = residual.clone()
            residual[:, len(prompt) - 1 :] += coefficient * direction
            return residual

        tokens = list(prompt)
        with torch.no_grad(), tiny_model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", add)]):
            while len(tokens) < len(prompt) + 8 and tokens[-1] != 258:
                tokens.append(int(tiny_model(torch.tensor([tokens]))[0, -1].argmax()))
        assert found.tokens == tuple(token for token in tokens[len(prompt) :] if token != 258)
    assert steered.tokens != plain.tokens


def test_questions_that_spell_control_tokens_are_counted_once_for_all(tiny_model):
    questions = ["Who?", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    requests = [pl.models.RolloutRequest(question, (index,)) for index, question in enumerate(questions)]
    with pytest.warns(pl.errors.ControlTextWarning, match="2 of 3 texts spell") as said:
        pl.models.sample_rollouts(tiny_model, requests, pl.Sampling(max_new_tokens=2))
    assert len(said) == 1
