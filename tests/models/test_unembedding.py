"""What a direction writes, against the weights read by hand."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.models import unembed_directions
from tests.backends import BACKENDS


def standardize(values):
    return (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, correction=0, keepdim=True)


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_final_norms_gain_is_applied_and_lengths_do_not_matter(tiny_folder, architecture, backend):
    model = pl.load_model(tiny_folder(architecture), backend=backend, dtype="float32", device="cpu")
    hugging_face = AutoModelForCausalLM.from_pretrained(tiny_folder(architecture))
    directions = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    gain = hugging_face.model.norm.weight.detach() + (architecture == "gemma")  # Gemma's weights leave out the 1
    expected = standardize((directions * gain) @ hugging_face.lm_head.weight.detach().T)
    for length in (1e-3, 1.0, 1e4):
        written = unembed_directions(model, length * directions)[:, : expected.shape[1]]
        torch.testing.assert_close(written, expected[:, : written.shape[1]], atol=1e-3, rtol=1e-3)


def test_the_opposite_direction_writes_the_opposite(tiny_model):
    direction = torch.randn(1, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unembed_directions(tiny_model, -direction), -unembed_directions(tiny_model, direction))


def test_a_direction_that_is_a_tokens_row_promotes_it(tiny_model):
    token = 70
    row = (tiny_model.unembed.W_U[:, token] / tiny_model.ln_final.w).detach()[None]
    read = pl.vectors.read_unembedding(tiny_model, row.repeat(3, 1), n_tokens=3)
    name = tiny_model.tokenizer.decode([token])
    assert all(one.promoted[0][0] == name for one in read.layers)
    (back,) = {one.demoted for one in pl.vectors.read_unembedding(tiny_model, -row.repeat(3, 1), n_tokens=3).layers}
    assert back[0][0] == name
    assert back[0][1] < 0
    assert read.random.low < read.random.estimate < read.random.high


def test_what_does_not_fit_is_refused(tiny_model):
    for wrong in (torch.ones(1, 47), torch.zeros(1, 48)):
        with pytest.raises(pl.errors.InvalidArgumentError):
            unembed_directions(tiny_model, wrong)
    with pytest.raises(pl.errors.InvalidArgumentError, match="n_tokens"):
        pl.vectors.read_unembedding(tiny_model, torch.ones(3, 48), n_tokens=0)
    with pl.hooked(tiny_model, pl.Intervention.of(1, pl.tensors.Add(torch.ones(48), 1.0))):
        tiny_model(torch.tensor([[1, 2]]))
        with pytest.raises(pl.errors.HooksPresentError):
            unembed_directions(tiny_model, torch.ones(1, 48))
