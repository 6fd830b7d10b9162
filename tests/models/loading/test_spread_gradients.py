"""Gradients of a model that is spread over memory and the disk, against those of the model in memory."""

from pathlib import Path

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import UnsupportedModelError
from persona_lens.models.loading import spreading
from persona_lens.screening import ScreenSettings, read_gradient, score_gradients
from tests.interventions.test_steering import make_vector
from tests.models.loading.test_placing import SPREAD, TOKENS
from tests.screening.test_scores import converse
from tests.tiny import save_tiny
from tests.vectors.test_written import EXAMPLES

ROWS = [converse("Why?", "So be."), converse("Who are you then?", "I!")]
SETTINGS = ScreenSettings(max_response_tokens=6, max_prompt_tokens=80)
STEPS = {"n_steps": 4, "batch_size": 2, "learning_rate": 0.5}


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model", "llama")


@pytest.fixture
def plain(folder):
    return pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")


@pytest.fixture
def fetching(folder):
    """A model whose middle block is copied to the computing device while it runs, as where a GPU computes."""
    model = pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")
    spreading.BlockFetcher(model.blocks[1].original_component, torch.device("cpu")).attach()
    return model


every_map = pytest.mark.parametrize("device_map", ["disk", SPREAD], ids=["disk", "spread"])


@every_map
def test_gradients_on_weights_from_the_disk_score_rows_as_those_in_memory_do(folder, plain, device_map):
    spread = pl.load_model(folder, device_map=device_map)
    references = [read_gradient(model, ROWS, settings=SETTINGS) for model in (spread, plain)]
    assert references[0].by_weight.keys() == references[1].by_weight.keys()
    assert all(torch.equal(one, references[1].by_weight[name]) for name, one in references[0].by_weight.items())
    scores = [score_gradients(model, ROWS, {"loud": references[1]}, settings=SETTINGS) for model in (spread, plain)]
    assert scores[0] == scores[1]
    assert all(one.grad is None for one in spread.parameters())


@every_map
def test_a_vector_is_optimised_through_blocks_on_the_disk_as_in_memory(folder, plain, device_map):
    spread = pl.load_model(folder, device_map=device_map)
    found, expected = (pl.vectors.optimise_vector(model, "loud", EXAMPLES[:2], 0, **STEPS) for model in (spread, plain))
    assert torch.equal(found.directions, expected.directions)
    assert found.provenance["losses"] == expected.provenance["losses"]


@every_map
def test_directions_are_carried_through_blocks_on_the_disk_as_in_memory(folder, plain, device_map):
    spread = pl.load_model(folder, device_map=device_map)
    directions = torch.eye(2, 48)
    found, expected = (
        pl.models.transport_directions(model, directions, 0, [TOKENS[0].tolist()]) for model in (spread, plain)
    )
    assert torch.equal(found, expected)


@every_map
def test_ones_own_hooks_take_gradients_of_activations_under_steering(folder, plain, device_map):
    spread = pl.load_model(folder, device_map=device_map)
    vector = make_vector(plain)
    taken = []
    for model in (spread, plain):
        kept = []

        def keep(value, hook, kept=kept):
            value.retain_grad()
            kept.append(value)

        with torch.enable_grad(), pl.steering(model, vector, layer=1, coefficient=1.0, positions="all"):
            hooks = [(f"blocks.{layer}.hook_resid_post", keep) for layer in (0, 2)]
            model.run_with_hooks(TOKENS, fwd_hooks=hooks)[:, -1, 5].sum().backward()
        taken.append([one.grad for one in kept])
        model.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*taken, strict=True))
    assert all(one.abs().sum() > 0 for one in taken[0])


def test_a_step_on_weights_from_the_disk_is_that_in_memory_and_leaves_the_files(folder, plain):
    """What is written to lies in memory from then on, page by page."""
    spread, tokens = pl.load_model(folder, device_map="disk"), TOKENS[:, :8]
    file = Path(folder, "model.safetensors")
    before = file.read_bytes()
    for model in (spread, plain):
        optimiser = torch.optim.SGD([one for one in model.parameters() if one.is_floating_point()], lr=0.1)
        with torch.enable_grad():
            for _ in range(2):
                optimiser.zero_grad()
                logits = model(tokens)
                torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
                optimiser.step()
    with torch.no_grad():
        assert torch.equal(spread(TOKENS), plain(TOKENS))
        assert not torch.equal(spread(TOKENS), pl.load_model(folder, device_map="disk")(TOKENS))
    assert file.read_bytes() == before


# Blocks that are copied to the device that computes --------------------------------------------------------------


def test_a_forward_derivative_passes_a_block_that_is_fetched(fetching, plain):
    directions = torch.eye(2, 48)
    found, expected = (
        pl.models.transport_directions(model, directions, 0, [TOKENS[0].tolist()]) for model in (fetching, plain)
    )
    assert torch.equal(found, expected)


def test_gradients_that_would_pass_a_fetched_block_are_refused_before_any_work(fetching, plain, monkeypatch):
    reference = read_gradient(plain, ROWS, settings=SETTINGS)
    monkeypatch.setattr(type(fetching), "forward", lambda *given, **named: pytest.fail("the model ran"))
    message = r"`device_map` must keep the weights of every block that gradients pass .* 'elsewhere those of layers 1'"
    with pytest.raises(UnsupportedModelError, match=message):
        read_gradient(fetching, ROWS, settings=SETTINGS)
    with pytest.raises(UnsupportedModelError, match=message):
        score_gradients(fetching, ROWS, {"loud": reference}, settings=SETTINGS)
    with pytest.raises(UnsupportedModelError, match=message):
        pl.vectors.optimise_vector(fetching, "loud", EXAMPLES[:2], 0, **STEPS)


def test_ones_own_gradient_is_refused_by_name_where_it_comes_to_a_fetched_block(fetching):
    kept = []
    with torch.enable_grad():
        logits = fetching.run_with_hooks(
            TOKENS, fwd_hooks=[("blocks.2.hook_resid_post", lambda value, hook: kept.append(value))]
        )
        # After the block that is fetched nothing stands in the way.
        (gradient,) = torch.autograd.grad(logits[:, -1, 5].sum(), kept, retain_graph=True)
        assert gradient.abs().sum() > 0
        with pytest.raises(UnsupportedModelError, match="gradients for a block that lies elsewhere"):
            logits.sum().backward()
    fetching.zero_grad()
    with torch.no_grad():
        assert torch.equal(fetching(TOKENS), logits)
