import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ContextLengthError, InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.monitoring import project_last_prompt_token, prompts
from tests.monitoring.examples import CHAT, LAYERS, ORDINARY


def direct_projection(model, conversation, vector, layer):
    """By the model's own cache, one conversation at a time."""
    text = model.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])  # a template is complete
    _, cache = model.run_with_cache(tokens)
    return float(cache[f"blocks.{layer}.hook_resid_post"][0, -1] @ vector.unit(layer))


def test_the_projection_is_that_of_the_generation_prompts_last_token(model, vectors):
    conversations = [*ORDINARY, CHAT, CHAT[:2]]
    found = project_last_prompt_token(model, conversations, vectors, LAYERS)
    for name, vector in vectors.items():
        expected = [direct_projection(model, chat, vector, LAYERS[name]) for chat in conversations]
        torch.testing.assert_close(found[name], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_conversation_that_begins_another_is_read_from_its_pass(model, vectors, monkeypatch):
    seen = []
    run = prompts.project_residual_stream

    def count(model, tokens, *args, **kwargs):
        seen.append(len(tokens))
        return run(model, tokens, *args, **kwargs)

    monkeypatch.setattr(prompts, "project_residual_stream", count)
    project_last_prompt_token(model, [CHAT[:2], CHAT, CHAT], vectors, LAYERS)
    assert seen == [1]


def test_the_projection_uses_the_vectors_own_token_position(model, vectors):
    directions = torch.randn(3, 48)
    both = pl.PersonaVector(
        "loud", pl.describe_model(model), {"response_mean": vectors["loud"].directions, "last_prompt": directions}
    )
    found = project_last_prompt_token(model, [CHAT], {"a": both, "b": both.at("last_prompt")}, {"a": 1, "b": 1})
    assert float(found["a"]) == pytest.approx(direct_projection(model, CHAT, both, 1), abs=1e-4)
    assert float(found["b"]) == pytest.approx(direct_projection(model, CHAT, both.at("last_prompt"), 1), abs=1e-4)


def test_many_conversations_give_what_each_gives_alone(model, vectors, monkeypatch):
    together = project_last_prompt_token(model, ORDINARY, vectors, LAYERS)["loud"]
    monkeypatch.setattr(prompts, "_TOKENS_AT_ONCE", 1)
    alone = project_last_prompt_token(model, ORDINARY, vectors, LAYERS)["loud"]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("conversations", "words"),
    [
        ([], "at least one"),
        ([[]], r"conversations\[0\].*at least one message"),
        ([ORDINARY[0], [{"role": "wizard", "content": "Hi"}]], r"conversations\[1\].*'wizard'"),
        ([[{"role": "user", "content": 3}]], "text"),
        ([[*CHAT[:3]]], "end where the assistant"),
        ([[{"role": "system", "content": "Hi"}]], "message of the user"),
    ],
)
def test_a_bad_conversation_is_refused_before_the_model_runs(model, vectors, conversations, words, monkeypatch):
    monkeypatch.setattr(prompts, "project_residual_stream", None)
    with pytest.raises(InvalidArgumentError, match=words):
        project_last_prompt_token(model, conversations, vectors, LAYERS)


def test_bad_vectors_and_layers_are_refused(model, vectors, tiny_folder):
    with pytest.raises(LayerOutOfRangeError):
        project_last_prompt_token(model, ORDINARY, vectors, LAYERS | {"shy": 3})
    with pytest.raises(InvalidArgumentError, match="shy"):
        project_last_prompt_token(model, ORDINARY, vectors, {"loud": 1})
    with pytest.raises(InvalidArgumentError, match="at least one vector"):
        project_last_prompt_token(model, ORDINARY, {}, {})
    other = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        project_last_prompt_token(other, ORDINARY, vectors, LAYERS)
    with pytest.raises(ContextLengthError):
        project_last_prompt_token(model, [[{"role": "user", "content": "long " * 99}]], vectors, LAYERS)
