import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import persona_lens as pl
from persona_lens.errors import HookNeverFiredError, InvalidArgumentError, LayerOutOfRangeError, UnsupportedModelError
from persona_lens.finetuning import trainer
from persona_lens.finetuning.blocks import TrainingInterventions, reading_residuals
from persona_lens.models.loading import find_blocks
from persona_lens.tensors import Ablate, AblateSubspace, Add, Cap, Gate, KeepNorm, Rotate
from tests.backends import ARCHITECTURES, BACKENDS
from tests.tiny import make_hf_model

# PEFT 0.21 reads an attribute that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

D_MODEL = 48
ROWS = [[39, 40, 41, 42, 43], [90, 80, 70, 60, 50, 40, 30, 20, 10, 9], [33, 34]]
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def direction(seed):
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def site(layer, kind=Add, seed=0, **values):
    return pl.Intervention.of(layer, kind(direction(seed), **(values or ({"coefficient": 1.5} if kind is Add else {}))))


def pad(rows, to=12):
    tokens = torch.tensor([[*row, *[35] * (to - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (to - len(row)) for row in rows])
    return {"input_ids": tokens, "attention_mask": mask}


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def run_with(model, intervention, inputs):
    with TrainingInterventions(model, intervention).attached():
        return run(model, inputs)


def read_with(model, intervention, inputs, layer):
    """The residual stream after a layer, with what is done there."""
    with TrainingInterventions(model, intervention).attached(), reading_residuals(model, [layer]) as found:
        run(model, inputs)
        return found[layer]


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def with_lora(architecture="llama"):
    """A model whose adapter already does something, so that gradients reach all of it."""
    torch.manual_seed(0)
    model = get_peft_model(
        make_hf_model(architecture), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


@pytest.fixture(scope="module")
def llama():
    return make_hf_model("llama")


def gradients(model, intervention):
    model.zero_grad()
    inputs = pad(ROWS)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with TrainingInterventions(model, intervention).attached():
        model(**inputs, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_coefficient_zero_changes_no_bit_of_any_gradient():
    model = with_lora()
    plain, idle = (
        gradients(model, pl.Intervention()),
        gradients(model, site(0, coefficient=0.0) + site(2, coefficient=0.0)),
    )
    assert len(plain) == 2 * 7 * 3
    assert all(gradient.any() for gradient in plain.values())
    assert all(torch.equal(plain[name], idle[name]) for name in plain)
    steered = gradients(model, site(1))
    assert not any(torch.equal(plain[name], steered[name]) for name in plain if "layers.2" in name)


@pytest.mark.parametrize("intervention", [site(1), site(0, Ablate) + site(2), site(1, Cap, floor=-0.5, ceiling=0.5)])
def test_a_padded_row_is_treated_as_if_it_were_alone(llama, intervention):
    together = run_with(llama, intervention, pad(ROWS))
    for row, tokens in enumerate(ROWS):
        alone = run_with(llama, intervention, {"input_ids": torch.tensor([tokens])})  # without any mask
        torch.testing.assert_close(together[row, : len(tokens)], alone[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(alone, run(llama, {"input_ids": torch.tensor([tokens])}), atol=0.01)


@pytest.mark.parametrize("kind", [Add, Ablate])
def test_padding_is_never_changed_and_every_token_is(llama, kind):
    inputs = pad(ROWS)
    is_token = inputs["attention_mask"].bool()
    before, after = read_with(llama, pl.Intervention(), inputs, 1), read_with(llama, site(1, kind), inputs, 1)
    assert torch.equal(before[~is_token], after[~is_token])
    expected = site(1, kind).at(1)[0](before)
    torch.testing.assert_close(after[is_token], expected[is_token], atol=1e-5, rtol=1e-5)
    assert (after - before).norm(dim=-1)[is_token].min() > 1e-3


def test_the_mask_is_that_of_the_same_forward_pass(llama):
    """A batch without a mask, after one with it, is steered at every token."""
    tokens = pad(ROWS)["input_ids"]
    with TrainingInterventions(llama, site(1)).attached(), reading_residuals(llama, [1]) as found:
        run(llama, pad(ROWS))
        run(llama, {"input_ids": tokens})
        steered = found[1]
    torch.testing.assert_close(
        steered, read_with(llama, pl.Intervention(), {"input_ids": tokens}, 1) + 1.5 * direction(0)
    )


def test_several_interventions_at_a_layer_act_in_their_order(llama):
    inputs = pad(ROWS[1:2], to=10)
    first, second = site(1, Add, seed=0), site(1, Ablate, seed=1)
    base = read_with(llama, pl.Intervention(), inputs, 1)
    for one, other in ((first, second), (second, first)):
        expected = other.at(1)[0](one.at(1)[0](base))
        torch.testing.assert_close(read_with(llama, one + other, inputs, 1), expected, atol=1e-5, rtol=1e-5)


def test_no_hook_remains_afterwards_nor_after_an_exception():
    model = with_lora()
    before = count_hooks(model)
    active = TrainingInterventions(model, site(0) + site(0, Ablate) + site(2))
    with active.attached(), reading_residuals(model, [1]):
        assert count_hooks(model) == before + 2 + 1 + 1  # layers 0 and 2, the padding mask, what is read
    assert count_hooks(model) == before
    with pytest.raises(KeyError), active.attached(), reading_residuals(model, [0, 1]):
        raise KeyError
    assert count_hooks(model) == before


def test_without_interventions_nothing_is_hooked(llama):
    before = count_hooks(llama)
    with TrainingInterventions(llama, pl.Intervention()).attached() as active:
        assert count_hooks(llama) == before
        active.check_fired()


def test_switched_off_no_bit_is_changed_and_then_it_acts_again(llama):
    inputs = pad(ROWS)
    with TrainingInterventions(llama, site(0) + site(2, Ablate)).attached() as active:
        steered = run(llama, inputs)
        with active.switched_off():
            with active.switched_off():
                pass
            off = run(llama, inputs)
        with pytest.raises(KeyError), active.switched_off():
            raise KeyError
        again = run(llama, inputs)
    assert torch.equal(off, run(llama, inputs))
    assert torch.equal(again, steered)
    assert not torch.allclose(steered, off, atol=0.01)


@each_architecture
def test_the_logits_are_those_of_the_same_intervention_as_hooks(tiny_folder, architecture):
    """Against TransformerLens, whose hook points are elsewhere in the code."""
    intervention = (
        site(0) + site(1, Ablate, seed=1) + site(1, Add, seed=2, coefficient=-0.7) + site(2, Cap, ceiling=0.2)
    )
    inputs = {"input_ids": torch.tensor(ROWS[1:2]), "attention_mask": torch.ones(1, len(ROWS[1]))}
    steered = run_with(make_hf_model(architecture), intervention, inputs)
    model = pl.load_model(tiny_folder(architecture), backend=BACKENDS[0], dtype="float32", device="cpu")
    with torch.no_grad():
        expected = model.run_with_hooks(
            inputs["input_ids"], fwd_hooks=pl.interventions.intervention_hooks(intervention)
        )
        assert not torch.allclose(model(inputs["input_ids"]), expected, atol=0.01)
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operation", [
    Rotate(direction(1), 40.0), AblateSubspace(torch.stack([direction(1), direction(2)])),
    KeepNorm((Gate((Add(direction(0), 2.0),), direction(1), above=0.0),)),
], ids=lambda one: type(one).__name__)  # fmt: skip
def test_each_way_to_act_gives_the_logits_of_its_hooks_and_finite_gradients(tiny_folder, operation):
    intervention = pl.Intervention.of(1, operation)
    inputs = {"input_ids": torch.tensor(ROWS[1:2]), "attention_mask": torch.ones(1, len(ROWS[1]))}
    model = pl.load_model(tiny_folder("llama"), backend=BACKENDS[0], dtype="float32", device="cpu")
    with torch.no_grad():
        expected = model.run_with_hooks(
            inputs["input_ids"], fwd_hooks=pl.interventions.intervention_hooks(intervention)
        )
        assert not torch.allclose(model(inputs["input_ids"]), expected, atol=0.01)
    steered = run_with(make_hf_model("llama"), intervention, inputs)
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=1e-4)
    assert all(bool(one.isfinite().all()) for one in gradients(with_lora(), intervention).values())


def test_a_window_of_a_response_is_refused_before_training(llama, tmp_path):
    windowed = site(1).during(pl.interventions.Window(stop=4))
    with pytest.raises(InvalidArgumentError, match="`intervention` must have no window here"):
        TrainingInterventions(llama, windowed)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
    with pytest.raises(InvalidArgumentError, match="`intervention` must have no window here"):
        pl.finetune("no model is loaded", [row], tmp_path, intervention=windowed)
    assert list(tmp_path.iterdir()) == []


@each_architecture
def test_the_blocks_are_found_also_inside_an_adapter(architecture):
    model = make_hf_model(architecture)
    layers = model.model.layers
    assert find_blocks(model) is layers
    wrapped = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert find_blocks(wrapped) is layers


def test_blocks_that_cannot_be_told_are_refused():
    for extra in (0, 2):
        model = make_hf_model("llama")
        model.config.num_hidden_layers = 3 if extra else 4
        for i in range(extra):
            setattr(model, f"extra{i}", nn.ModuleList(nn.Identity() for _ in range(3)))
        with pytest.raises(UnsupportedModelError, match=f"LlamaForCausalLM with {1 + extra if extra else 0}"):
            TrainingInterventions(model, pl.Intervention())


def test_layers_that_no_forward_pass_reached_are_named(llama):
    active = TrainingInterventions(llama, site(1) + site(2))
    with pytest.raises(HookNeverFiredError, match=r"layer 1.*layer 2"):
        active.check_fired()
    with active.attached():
        with active.switched_off():
            run(llama, pad(ROWS))
        with pytest.raises(HookNeverFiredError, match=r"layer 1.*layer 2"):
            active.check_fired()
        run(llama, pad(ROWS))
    active.check_fired()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"intervention": site(3)}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"intervention": site(1) + site(-1)}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"penalty": pl.finetuning.ProjectionPenalty(3, direction(0), 1.0)}, LayerOutOfRangeError, r"\[0, 3\)"),
        ({"intervention": pl.Intervention.of(1, Add(torch.ones(47), 1.0))}, InvalidArgumentError, "d_model=48"),
        ({"intervention": pl.Intervention.of(1, Add(torch.ones(8), 1.0), head=6)}, InvalidArgumentError, "head"),
        ({"penalty": pl.finetuning.ProjectionPenalty(1, torch.ones(47), 1.0)}, InvalidArgumentError, "d_model=48"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_training(
    tiny_folder, tmp_path, monkeypatch, given, error, message
):
    monkeypatch.setattr(trainer, "make_trainer", lambda *_: pytest.fail("training began"))
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
    with pytest.raises(error, match=message):
        pl.finetune(tiny_folder("llama"), [row], tmp_path, settings=pl.FinetuneSettings(dtype="float32"), **given)
    assert list(tmp_path.iterdir()) == []


def at_head(layer, head, kind=Add, seed=0, **values):
    own = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    return pl.Intervention.of(layer, kind(own, **(values or {"coefficient": 1.5})), head=head)


@each_architecture
def test_heads_in_training_are_those_of_hooks_also_inside_an_adapter(tiny_folder, architecture):
    intervention = (
        at_head(0, 5) + at_head(1, 2, seed=1, coefficient=-4.0) + at_head(1, 0, Cap, ceiling=0.1) + site(1, Ablate)
    )
    inputs = {"input_ids": torch.tensor(ROWS[1:2]), "attention_mask": torch.ones(1, len(ROWS[1]))}
    model = pl.load_model(tiny_folder(architecture), backend=BACKENDS[0], dtype="float32", device="cpu")
    hooks = pl.interventions.intervention_hooks(intervention)
    with torch.no_grad():
        expected = model.run_with_hooks(inputs["input_ids"], fwd_hooks=hooks)
        assert not torch.allclose(model(inputs["input_ids"]), expected, atol=0.01)
    hf_model = make_hf_model(architecture)
    torch.testing.assert_close(run_with(hf_model, intervention, inputs), expected, atol=1e-4, rtol=1e-4)
    idle = get_peft_model(hf_model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.testing.assert_close(run_with(idle, intervention, inputs), expected, atol=1e-4, rtol=1e-4)


def test_heads_in_training_spare_padding_and_leave_no_hook_and_are_switched_off(llama):
    intervention = at_head(1, 2) + at_head(1, 5, seed=1)
    together = run_with(llama, intervention, pad(ROWS))
    for row, tokens in enumerate(ROWS):
        alone = run_with(llama, intervention, {"input_ids": torch.tensor([tokens])})
        torch.testing.assert_close(together[row, : len(tokens)], alone[0], atol=1e-4, rtol=1e-4)
    before = count_hooks(llama)
    with TrainingInterventions(llama, intervention).attached() as active:
        assert count_hooks(llama) == before + 3
        with active.switched_off():
            assert torch.equal(run(llama, pad(ROWS)), run_with(llama, pl.Intervention(), pad(ROWS)))
            with pytest.raises(HookNeverFiredError, match=r"layer 1, head 2.*layer 1, head 5"):
                active.check_fired()
        run(llama, pad(ROWS))
        active.check_fired()
    assert count_hooks(llama) == before


def test_gradients_pass_through_a_shifted_head_and_coefficient_zero_changes_none_of_their_bits():
    model = with_lora()
    plain, idle = gradients(model, pl.Intervention()), gradients(model, at_head(1, 3, coefficient=0.0))
    assert all(torch.equal(plain[name], idle[name]) for name in plain)
    steered = gradients(model, at_head(1, 3))
    assert all(gradient.any() for gradient in steered.values())
    assert not any(torch.equal(plain[name], steered[name]) for name in plain if "layers.2" in name)


def test_gpt_2s_heads_are_found_and_an_architecture_without_such_a_projection_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=48, n_layer=2, n_head=6)).eval()
    found = []
    block = model.transformer.h[1].attn
    handle = block.register_forward_hook(lambda module, args, output: found.append(output[0]))
    inputs = {"input_ids": torch.tensor([ROWS[0]])}
    run(model, inputs)
    run_with(model, at_head(1, 4), inputs)
    handle.remove()
    shift = at_head(1, 4).steps[0].operation.scaled @ block.c_proj.weight[4 * 8 : 5 * 8]
    torch.testing.assert_close(found[1], found[0] + shift, atol=1e-5, rtol=1e-5)
    block.other, block.c_proj = block.c_proj, None
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel with none at self_attn\.o_proj"):
        TrainingInterventions(model, at_head(1, 4))


def test_gradients_reach_the_blocks_below_through_what_is_read():
    model = with_lora()
    with reading_residuals(model, [0, 2]) as found:
        model(**pad(ROWS))
        assert sorted(found) == [0, 2]
        found[0].sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all("layers.0." in name for name in reached)


def test_interventions_changed_between_steps_are_those_of_contexts_of_their_own():
    """Weights after four steps, two with each of two interventions: the same bit by bit."""

    def learn(model, optimizer):
        optimizer.zero_grad()
        inputs = pad(ROWS)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()

    weights, hooks = [], []
    for is_changed in (True, False):
        model = with_lora()
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
        first, second = site(0) + site(1, Ablate), site(2, seed=1)
        if is_changed:
            with TrainingInterventions(model, first).attached() as active:
                for step in range(4):
                    if step == 2:
                        active.change_to(second)
                    learn(model, optimizer)
        else:
            for step in range(4):
                with TrainingInterventions(model, first if step < 2 else second).attached():
                    learn(model, optimizer)
        weights.append([one.detach().clone() for one in model.parameters() if one.requires_grad])
        hooks.append(count_hooks(model))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert hooks == [0, 0]


def test_what_a_change_brings_must_be_reached_too(llama):
    active = TrainingInterventions(llama, site(0))
    with active.attached():
        run(llama, pad(ROWS))
        active.check_fired()
        active.change_to(site(1))
        with pytest.raises(HookNeverFiredError, match="layer 1"):
            active.check_fired()
        run(llama, pad(ROWS))
        active.check_fired()
        with pytest.raises(InvalidArgumentError, match="have no window here"):
            active.change_to(site(1).during(pl.interventions.Window(stop=2)))


def test_a_change_before_the_blocks_are_held_acts_once_they_are(llama):
    active = TrainingInterventions(llama, site(0))
    active.change_to(site(1, seed=1))
    with active.attached():
        found = run(llama, pad(ROWS))
    assert torch.equal(found, run_with(llama, site(1, seed=1), pad(ROWS)))
