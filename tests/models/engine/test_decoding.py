import pytest
import torch

import persona_lens as pl
from persona_lens.errors import HooksPresentError, UnsupportedModelError
from persona_lens.models.engine.decoding import open_decoder
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


def make_hooked(**fields):
    """A random HookedTransformer of a shape that load_model never makes, but a user may bring."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 8, "n_heads": 4, "d_vocab": 256, "act_fn": "gelu"}
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 8}
    torch.manual_seed(0)
    model = HookedTransformer(HookedTransformerConfig(**shape | rotary | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize(
    "fields",
    [
        {"positional_embedding_type": "standard"},
        {"parallel_attn_mlp": True},
        {"rotary_dim": 4},
        {"rotary_dim": 4, "rotary_adjacent_pairs": True},
    ],
)
def test_models_of_other_shapes_run_in_pieces_as_in_one_ordinary_pass(fields):
    model = make_hooked(**fields)
    tokens = random_tokens((2, 20))
    with torch.no_grad():
        expected = model(tokens)
    with open_decoder(model) as decoder:
        cache = decoder.new_cache(2, 20)
        starts = torch.zeros(2, dtype=torch.long)
        parts = [decoder.extend(tokens[:, at : at + n], starts + at, cache) for at, n in ((0, 12), (12, 7), (19, 1))]
        logits = decoder.unembed(torch.cat(parts, dim=1))
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize(
    "fields",
    [
        {"positional_embedding_type": "shortformer"},
        {"attention_dir": "bidirectional"},
        {"attn_only": True},
        {"use_attn_result": True},
        {"use_split_qkv_input": True},
        {"use_hook_mlp_in": True},
    ],
)
def test_what_lean_attention_does_not_compute_is_refused_by_name(fields):
    (name,) = fields
    with pytest.raises(UnsupportedModelError, match=name), open_decoder(make_hooked(**fields)):
        pass


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale:UserWarning")  # the bridge's, of ln_final
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hook_acts_as_in_an_ordinary_pass_or_is_refused(tiny_folder, backend):
    """Every hook point of a block and outside the blocks, one after the other: none is passed by in silence."""
    model = load(tiny_folder, "gemma2", backend)
    tokens = random_tokens((2, 9))

    def logits():
        with open_decoder(model) as decoder:
            hidden = decoder.extend(tokens, torch.zeros(2, dtype=torch.long), decoder.new_cache(2, 9))
            return decoder.unembed(hidden)

    acted, refused = set(), set()
    for name in [name for name in model.hook_dict if name.startswith("blocks.1.") or not name.startswith("blocks.")]:
        try:
            with model.hooks(fwd_hooks=[(name, scale_floats)]), torch.no_grad():
                found, expected = logits(), model(tokens)
        except HooksPresentError:
            refused.add(name)
        except ValueError as error:
            if "Cannot add hook" not in str(error):  # TransformerLens itself refuses what is switched off
                raise
        else:
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4, msg=name)
            acted.add(name)
    expected = {"blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"}
    assert expected | {"unembed.hook_in", "unembed.hook_out"} <= acted
    assert "blocks.1.attn.hook_pattern" in refused


def scale_floats(value, hook):
    """Change what a hook sees, unevenly: a norm that follows would undo one factor. Positions and tuples stay."""
    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return value
    return value * torch.linspace(0.5, 1.5, value.shape[-1])
