import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import persona_lens as pl
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.prefixes import PromptMemory, compute_prefixes
from tests.tiny import make_tokenizer

TOKENS = st.lists(st.integers(3, 250), min_size=2, max_size=40)


@settings(max_examples=10)
@given(first=TOKENS, more=TOKENS, other=TOKENS)
def test_a_prompt_that_goes_on_from_a_known_one_is_as_if_computed_whole(tiny_model, first, more, other):
    memory = PromptMemory(tiny_model.cfg.n_ctx)
    prompts = [(*first, *more), tuple(other)]
    with open_decoder(tiny_model) as decoder:
        (known,) = compute_prefixes(decoder, [tuple(first)])
        memory.replace({tuple(first): known})
        again, whole = (compute_prefixes(decoder, prompts, one) for one in (memory, None))
    for a, b in zip(again, whole, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.values, b.values, atol=1e-4, rtol=1e-4)


def test_the_longest_known_beginning_is_taken_and_nothing_that_is_not_one(tiny_model):
    memory = PromptMemory(tiny_model.cfg.n_ctx)
    with open_decoder(tiny_model) as decoder:
        short, long = compute_prefixes(decoder, [(5, 6, 7), (5, 6, 7, 8, 9)])
    memory.replace({(5, 6, 7): short, (5, 6, 7, 8, 9): long})
    assert memory.find((5, 6, 7, 8, 1, 2)) is long
    assert memory.find((5, 6, 1, 2)) is short
    assert memory.find((4, 5, 6, 7, 8)) is None
    assert memory.find((5, 6)) is None
    memory.replace({})
    assert memory.find((5, 6, 7, 8, 1, 2)) is None


def test_no_row_is_padded_past_the_models_last_position(tmp_path):
    config = GPT2Config(vocab_size=259, n_embd=48, n_layer=2, n_head=6, n_positions=128, bos_token_id=256)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = pl.load_model(str(tmp_path), dtype="float32", device="cpu")
    memory = PromptMemory(model.cfg.n_ctx)
    long, short = tuple(range(100, 200)), tuple(range(3, 13))
    prompts = [(*long, 5, 6, 7), (*short, *range(20, 110))]
    with open_decoder(model) as decoder:
        memory.replace(dict(zip((long, short), compute_prefixes(decoder, [long, short]), strict=True)))
        again, whole = (compute_prefixes(decoder, prompts, one) for one in (memory, None))
    for a, b in zip(again, whole, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.values, b.values, atol=1e-4, rtol=1e-4)
