import pytest
import torch

import persona_lens as pl
from persona_lens.errors import HooksPresentError
from persona_lens.models.decoding import open_decoder
from tests.backends import ARCHITECTURES, BACKENDS


def load(tiny_folder, architecture, backend):
    return pl.load_model(tiny_folder(architecture), backend=backend, dtype="float32", device="cpu")


def random_tokens(shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ragged_rows_in_pieces_equal_each_row_in_one_ordinary_pass(tiny_folder, architecture, backend):
    """Prompts of different lengths, then a piece of several tokens, then single steps: as model(row) gives them."""
    model = load(tiny_folder, architecture, backend)
    lengths = [3, 20, 11]
    rows = random_tokens((3, 30))
    found = [[] for _ in lengths]
    with open_decoder(model) as decoder:
        cache = decoder.new_cache(3, 30)
        hidden = decoder.extend(rows[:, :20], torch.zeros(3, dtype=torch.long), cache)
        for row, length in enumerate(lengths):
            found[row].append(hidden[row, :length])
        starts = torch.tensor(lengths)
        for size in (6, 1, 1):
            piece = torch.stack([rows[r, s : s + size] for r, s in enumerate(starts.tolist())])
            hidden = decoder.extend(piece, starts, cache)
            for row in range(3):
                found[row].append(hidden[row])
            starts = starts + size
        logits = [decoder.unembed(torch.cat(parts)) for parts in found]
    for row, length in enumerate(lengths):
        with torch.no_grad():
            expected = model(rows[row : row + 1, : length + 8])[0]
        torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_on_the_residual_stream_fire_and_act_as_in_an_ordinary_pass(tiny_folder, backend):
    model = load(tiny_folder, "llama", backend)
    tokens = random_tokens((2, 9))
    seen = {}

    def double(residual, hook):
        seen["in"] = residual.clone()
        return residual * 2

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", double)]):
        with torch.no_grad():
            expected = model(tokens)
        ordinary = seen.pop("in")
        with open_decoder(model) as decoder:
            hidden = decoder.extend(tokens, torch.zeros(2, dtype=torch.long), decoder.new_cache(2, 9))
            logits = decoder.unembed(hidden)
    torch.testing.assert_close(seen["in"], ordinary, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hook_inside_attention_is_refused_by_name(tiny_folder, backend):
    model = load(tiny_folder, "llama", backend)
    name = "blocks.0.attn.hook_pattern"
    with (
        model.hooks(fwd_hooks=[(name, lambda pattern, hook: None)]),
        pytest.raises(HooksPresentError, match="reset_hooks"),
        open_decoder(model),
    ):
        pass


def test_the_bridge_is_put_back_together_also_after_an_exception(tiny_folder):
    model = load(tiny_folder, "llama", "bridge")
    tokens = random_tokens((1, 7))
    pattern = "blocks.1.attn.hook_pattern"

    def logits_and_pattern():
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens, names_filter=[pattern])
        return logits, cache[pattern]

    before = logits_and_pattern()
    with pytest.raises(ZeroDivisionError), open_decoder(model):
        raise ZeroDivisionError
    for found, expected in zip(logits_and_pattern(), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_the_rows_beside_it(tiny_folder, backend):
    """A step of 16 rows against one of 48, the other rows much longer."""
    model = load(tiny_folder, "qwen2", backend)
    rows = random_tokens((48, 200), seed=1)
    lengths = torch.tensor([12] * 16 + [190] * 32)
    outputs = []
    for n_rows in (16, 48):
        with open_decoder(model) as decoder:
            cache = decoder.new_cache(n_rows, 200)
            for row in range(n_rows):  # each prompt by itself, so that only the step differs
                own = decoder.new_cache(1, 200)
                decoder.extend(rows[row : row + 1, : int(lengths[row])], torch.zeros(1, dtype=torch.long), own)
                keys, values = own.read_prefix(0, int(lengths[row]))
                cache.write_prefix(row, keys, values)
            outputs.append(decoder.extend(rows[:n_rows, 195:196], lengths[:n_rows], cache)[:16])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)


def test_gradients_are_off_inside_and_back_on_afterwards(tiny_model):
    with open_decoder(tiny_model) as decoder:
        hidden = decoder.extend(random_tokens((1, 3)), torch.zeros(1, dtype=torch.long), decoder.new_cache(1, 3))
        assert not hidden.requires_grad
    assert torch.is_grad_enabled()
