import torch

from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.prefixes import RecentlyUsed, compute_prefixes


def test_the_entry_least_recently_read_is_the_one_forgotten():
    kept = RecentlyUsed(2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.read("a") == 1
    kept.put("c", 3)
    assert dict(kept) == {"a": 1, "c": 3}


def test_a_prefix_is_all_of_a_prompt_but_its_last_token_whatever_the_prompts_beside_it(tiny_model):
    prompts = [(7,), (5, 6, 7, 8), tuple(range(40)), (5, 6, 7, 9)]
    with open_decoder(tiny_model) as decoder:
        together = compute_prefixes(decoder, prompts)
        for prompt, found in zip(prompts, together, strict=True):
            (alone,) = compute_prefixes(decoder, [prompt])
            assert found.length == alone.length == len(prompt) - 1
            torch.testing.assert_close(found.keys, alone.keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.values, alone.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1].keys, together[3].keys)  # the last token is left out
