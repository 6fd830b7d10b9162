"""Directions carried to the last layer, against finite differences and against another implementation."""

import pytest
import torch

import persona_lens as pl
from persona_lens.models import read_token_rows, transport_directions
from tests.backends import BACKENDS

ROWS = [torch.randint(0, 200, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (30, 24)]
DIRECTIONS = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))


def read_end(model, row, change):
    """Return the last layer's mean output while something is done after the first."""
    read = []
    hooks = [("blocks.0.hook_resid_post", change), ("blocks.2.hook_resid_post", lambda h, hook: read.append(h))]
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([row]), fwd_hooks=hooks)
    return read[0][0, 16:-1].mean(dim=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_how_the_last_layer_changes_as_a_direction_is_added(tiny_folder, backend):
    model = pl.load_model(tiny_folder("llama"), backend=backend, dtype="float32", device="cpu")
    carried = transport_directions(model, DIRECTIONS, 0, ROWS)
    changes = []
    for direction in DIRECTIONS:
        ends = []
        for sign in (1, -1):

            def add(residual, hook, step=sign * 1e-2 * direction):
                residual = residual.clone()
                residual[:, 16:-1] += step
                return residual

            ends.append(torch.stack([read_end(model, row, add) for row in ROWS]).mean(dim=0))
        changes.append((ends[0] - ends[1]) / 2e-2)
    torch.testing.assert_close(carried, torch.stack(changes), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("layer", [0, 1])
def test_transformer_lens_fits_the_same_jacobian_dimension_by_dimension(tiny_model, tiny_bridge, layer, monkeypatch):
    lens = pytest.importorskip("transformer_lens.tools.analysis").JacobianLens
    monkeypatch.setattr(tiny_bridge, "to_tokens", lambda row: torch.tensor([row]))
    fitted = lens.fit(tiny_bridge, ROWS, corpus="random tokens", show_progress=False)
    carried = transport_directions(tiny_model, DIRECTIONS, layer, ROWS)
    torch.testing.assert_close(carried, fitted.transport(DIRECTIONS, layer), atol=1e-5, rtol=1e-5)


def test_it_is_linear_and_from_the_last_layer_nothing_changes(tiny_model):
    one, two = transport_directions(tiny_model, DIRECTIONS[:2], 1, ROWS)
    (both,) = transport_directions(tiny_model, (2 * DIRECTIONS[0] - DIRECTIONS[1])[None], 1, ROWS)
    torch.testing.assert_close(both, 2 * one - two, atol=1e-5, rtol=1e-4)
    assert torch.equal(transport_directions(tiny_model, DIRECTIONS, 2, ROWS), DIRECTIONS)


def test_directions_of_more_rows_than_fit_at_once_come_back_the_same(tiny_model, monkeypatch):
    whole = transport_directions(tiny_model, DIRECTIONS, 0, ROWS)
    monkeypatch.setattr("persona_lens.models.engine.jacobian._TOKENS_AT_ONCE", 60)
    torch.testing.assert_close(transport_directions(tiny_model, DIRECTIONS, 0, ROWS), whole)


def test_what_cannot_be_carried_is_refused(tiny_model):
    for wrong in ([], [list(range(17))], [[5] * 10_000], [[10**6] * 20]):
        with pytest.raises(pl.errors.PersonaLensError, match="rows"):
            transport_directions(tiny_model, DIRECTIONS, 1, wrong)
    with pytest.raises(pl.errors.InvalidArgumentError, match="directions"):
        transport_directions(tiny_model, torch.ones(2, 47), 1, ROWS)
    with pytest.raises(pl.errors.LayerOutOfRangeError):
        transport_directions(tiny_model, DIRECTIONS, 3, ROWS)


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_a_tokens_row_times_a_direction_is_what_the_direction_writes(tiny_folder, architecture):
    model = pl.load_model(tiny_folder(architecture), dtype="float32", device="cpu")
    raw = DIRECTIONS @ read_token_rows(model).T
    written = pl.models.unembed_directions(model, DIRECTIONS)
    torch.testing.assert_close(raw / raw.std(dim=1, correction=0, keepdim=True), written, atol=1e-3, rtol=1e-3)
