"""Inference-time intervention: chosen heads shifted by multiples of their standard deviations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.interventions import shift_heads
from persona_lens.vectors import HeadChoice
from tests.backends import BACKENDS
from tests.interventions.test_steering import make_vector

TOKENS = torch.tensor([[256, 40, 41, 42, 43, 44, 45], [256, 90, 80, 70, 60, 50, 40]])
HEADS = ((1, 4), (1, 0), (2, 3))


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def choice(model):
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    return HeadChoice(
        "loud", pl.describe_model(model), HEADS, torch.full((3, 6), 0.5), directions, torch.tensor([0.5, 1.5, 2.0]),
        n_pairs=10, n_questions=10, folds=5, seed=0,
    )  # fmt: skip


def read(model, names, hooks=()):
    found, points = {}, {model.hook_dict[name].name: name for name in names}

    def keep(value, hook):
        found[points[hook.name]] = value.clone()

    with torch.no_grad(), model.hooks(fwd_hooks=[*hooks, *((name, keep) for name in names)]):
        found["logits"] = model(TOKENS)
    return found


def test_each_chosen_head_moves_by_multiples_of_its_sigma_and_no_other_moves_before_it(model, choice):
    names = [f"blocks.{layer}.{point}" for layer in range(3) for point in ("attn.hook_z", "hook_resid_post")]
    plain = read(model, names)
    shifted = read(model, names, pl.interventions.intervention_hooks(shift_heads(choice, -3.0)))
    for layer, head, sigma, direction in ((1, 4, 0.5, choice.directions[0]), (1, 0, 1.5, choice.directions[1])):
        before, after = (one[f"blocks.{layer}.attn.hook_z"][:, :, head] for one in (plain, shifted))
        torch.testing.assert_close(after - before, (-3 * sigma * direction).expand_as(before), atol=1e-5, rtol=1e-5)
    others = [1, 2, 3, 5]
    assert torch.equal(plain["blocks.1.attn.hook_z"][:, :, others], shifted["blocks.1.attn.hook_z"][:, :, others])
    for name in names[:2]:
        assert torch.equal(plain[name], shifted[name])


@given(coefficient=st.floats(-20, 20), layer=st.sampled_from([1, 2]))
@settings(max_examples=15)
def test_attentions_output_moves_by_the_output_projection_of_the_shifts(tiny_model, choice_of_tiny, coefficient, layer):
    name = f"blocks.{layer}.hook_attn_out"
    only = pl.Intervention(
        tuple(step for step in shift_heads(choice_of_tiny, coefficient).steps if step.layer == layer)
    )
    moved = read(tiny_model, [name], pl.interventions.intervention_hooks(only))[name] - read(tiny_model, [name])[name]
    weight = tiny_model.blocks[layer].attn.W_O.detach()
    expected = sum(
        coefficient * float(sigma) * direction @ weight[head]
        for (at, head), direction, sigma in zip(HEADS, choice_of_tiny.directions, choice_of_tiny.sigmas, strict=True)
        if at == layer
    )
    torch.testing.assert_close(moved, expected.expand_as(moved), atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def choice_of_tiny(tiny_model):
    return HeadChoice(
        "loud", pl.describe_model(tiny_model), HEADS, torch.full((3, 6), 0.5), torch.eye(8)[[0, 3, 5]],
        torch.tensor([0.5, 1.5, 2.0]), n_pairs=10, n_questions=10, folds=5, seed=0,
    )  # fmt: skip


def test_coefficient_zero_changes_no_bit(model, choice):
    plain = read(model, [])["logits"]
    assert torch.equal(plain, read(model, [], pl.interventions.intervention_hooks(shift_heads(choice, 0.0)))["logits"])


def test_it_adds_up_with_other_interventions_and_refuses_other_models(model, choice):
    vector = make_vector(model)
    both = shift_heads(choice, 2.0) + pl.ablate(vector, layer=2)
    add = "Add 2 × sd of loud"
    assert repr(both) == (
        f"Intervention(layer 1, head 0: {add}; layer 1, head 4: {add}; layer 2, head 3: {add}; "
        f"layer 2: Ablate {vector.trait})"
    )
    last = read(model, ["blocks.2.hook_resid_post"], pl.interventions.intervention_hooks(both))
    assert pl.project(last["blocks.2.hook_resid_post"], vector.unit(2)).abs().max() < 1e-4
    foreign = pl.Intervention(shift_heads(choice, 2.0).steps, "another")
    with pytest.raises(ModelMismatchError), pl.hooked(model, foreign):
        pass
    with pytest.raises(InvalidArgumentError, match="coefficient"):
        shift_heads(choice, float("nan"))
