"""A vector optimised on a preference, on a tiny model: its losses against a slow way, and what it does."""

import math

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError, LayerOutOfRangeError
from persona_lens.models import encode_conversation
from persona_lens.vectors import optimise_vector
from tests.vectors.test_written import EXAMPLES

SETTINGS = {"n_steps": 6, "batch_size": 2, "learning_rate": 0.5}


def measure_slowly(model, question, answer, layer=None, vector=None):
    """The answer's log-likelihood in a row of its own, steered by the package's public hooks."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    spans = encode_conversation(model.tokenizer, messages, n_ctx=model.cfg.n_ctx)
    tokens = torch.tensor([spans.tokens[: spans.response_end]])
    hooks = []
    if layer is not None:
        added = pl.Intervention.of(layer, pl.tensors.Add(vector, 1.0))
        hooks = pl.interventions.intervention_hooks(added, positions="response", prompt_length=spans.response_start)
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    foretold = logits[0, spans.response_start - 1 : -1].log_softmax(dim=-1)
    return foretold.gather(-1, tokens[0, spans.response_start :, None]).sum()


def prefer_slowly(model, example, layer, vector, sign, beta=0.1):
    gains = [
        measure_slowly(model, example.question, answer, layer, sign * vector)
        - measure_slowly(model, example.question, answer)
        for answer in (example.overt, example.opposite)
    ]
    return -torch.nn.functional.logsigmoid(beta * sign * (gains[0] - gains[1]))


def test_its_losses_are_those_of_the_formula_and_its_steps_are_adams(tiny_model):
    """One example a batch, taken in turn; the whole optimisation again, row by row, with the public hooks."""
    found = optimise_vector(tiny_model, "loud", EXAMPLES[:2], 1, n_steps=4, batch_size=2, learning_rate=0.5)
    mean = pl.read_persona_vector(tiny_model, "loud", EXAMPLES[:2]).direction(1)
    vector = (0.01 * mean).requires_grad_()
    adam = torch.optim.Adam([vector], lr=0.5 * float(mean.square().mean().sqrt()))
    losses = []
    for step in range(4):  # a batch of both, so that their order does not matter
        adam.zero_grad()
        loss = sum(prefer_slowly(tiny_model, one, 1, vector, (1.0, -1.0)[step % 2]) for one in EXAMPLES[:2]) / 2
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert found.provenance["losses"]["1"] == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(found.direction(1), vector.detach(), atol=1e-3, rtol=1e-3)
    tiny_model.zero_grad()


def test_it_lowers_the_loss_in_both_directions_and_leaves_the_model_as_it_was(tiny_model):
    before = {name: one.clone() for name, one in tiny_model.state_dict().items()}
    wanted = [one.requires_grad for one in tiny_model.parameters()]
    found = optimise_vector(tiny_model, "loud", EXAMPLES, 1, n_steps=20, batch_size=5, learning_rate=0.5)
    losses = found.provenance["losses"]["1"]
    assert losses[0] == pytest.approx(math.log(2), abs=0.02)
    with torch.no_grad():
        for sign in (1.0, -1.0):
            after = [float(prefer_slowly(tiny_model, one, 1, found.direction(1), sign)) for one in EXAMPLES]
            assert sum(after) / 5 < 0.9 * math.log(2)
    assert all(torch.equal(one, before[name]) for name, one in tiny_model.state_dict().items())
    assert [one.requires_grad for one in tiny_model.parameters()] == wanted
    assert all(one.grad is None for one in tiny_model.parameters())
    assert not [name for name, point in tiny_model.hook_dict.items() if point.fwd_hooks]


def test_several_layers_are_each_optimised_by_itself_and_the_others_stay_zero(tiny_model):
    both = optimise_vector(tiny_model, "loud", EXAMPLES, [0, 2], **SETTINGS)
    for layer in (0, 2):
        alone = optimise_vector(tiny_model, "loud", EXAMPLES, layer, **SETTINGS)
        assert torch.equal(alone.direction(layer), both.direction(layer))
        assert alone.norms.count_nonzero() == 1
    assert both.norms.nonzero()[:, 0].tolist() == [0, 2]
    assert both.provenance["length"].keys() == both.provenance["losses"].keys() == {"0", "2"}


def test_a_seed_gives_the_same_vector_and_another_another(tiny_model, tmp_path):
    one, again = (optimise_vector(tiny_model, "loud", EXAMPLES, 1, **SETTINGS) for _ in range(2))
    other = optimise_vector(tiny_model, "loud", EXAMPLES, 1, seed=1, **SETTINGS)
    assert torch.equal(one.directions, again.directions)
    assert not torch.equal(one.directions, other.directions)
    with torch.no_grad():  # gradients are its own affair
        assert torch.equal(optimise_vector(tiny_model, "loud", EXAMPLES, 1, **SETTINGS).directions, one.directions)
    one.save(tmp_path / "vector.safetensors")
    assert pl.PersonaVector.load(tmp_path / "vector.safetensors").provenance["losses"] == one.provenance["losses"]


def test_the_bridge_gives_the_same(tiny_model, tiny_bridge):
    one, other = (optimise_vector(model, "loud", EXAMPLES, 1, **SETTINGS) for model in (tiny_model, tiny_bridge))
    torch.testing.assert_close(one.direction(1), other.direction(1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("n_steps", 0), ("batch_size", 0), ("learning_rate", 0.0), ("beta", float("nan")), ("seed", -1)]
)
def test_values_out_of_range_are_refused_before_the_model_runs(name, value, tiny_model, monkeypatch):
    monkeypatch.setattr("persona_lens.vectors.preference.read_persona_vector", None)
    with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
        optimise_vector(tiny_model, "loud", EXAMPLES, 1, **{name: value})
    with pytest.raises(LayerOutOfRangeError):
        optimise_vector(tiny_model, "loud", EXAMPLES, 3)
    with pytest.raises(InvalidArgumentError, match="examples"):
        optimise_vector(tiny_model, "loud", EXAMPLES[:1], 1)


def test_a_steered_model_is_refused(tiny_model):
    with pl.hooked(tiny_model, pl.Intervention.of(1, pl.tensors.Add(torch.ones(48), 1.0))):
        tiny_model(torch.tensor([[1, 2]]))
        with pytest.raises(HooksPresentError):
            optimise_vector(tiny_model, "loud", EXAMPLES, 1)
