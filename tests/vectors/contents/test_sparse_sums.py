"""Sums of few directions, on dictionaries of which one knows what is in a vector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.vectors import sum_sparsely, sum_token_directions


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_a_sum_of_few_orthogonal_atoms_is_found_whole(seed, n):
    generator = torch.Generator().manual_seed(seed)
    atoms, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    chosen = torch.randperm(16, generator=generator)[:n]
    shares = torch.linspace(1.0, 2.0, n) * (1 - 2 * (torch.arange(n) % 2))
    (found,) = sum_sparsely((shares @ atoms[chosen])[None], 3 * atoms, n)
    assert set(found.chosen) == set(chosen.tolist())
    assert float(found.explained[-1]) == pytest.approx(1, abs=1e-5)
    by_atom = dict(zip(chosen.tolist(), (shares / shares.norm()).tolist(), strict=True))
    assert dict(zip(found.chosen, found.coefficients, strict=True)) == pytest.approx(by_atom, abs=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_each_term_explains_more_and_length_and_sign_do_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    dictionary, direction = torch.randn(40, 12, generator=generator), torch.randn(1, 12, generator=generator)
    once, turned = sum_sparsely(torch.cat([direction, -7 * direction]), dictionary, 6)
    steps = once.explained.diff()
    assert bool((steps > -1e-6).all())
    assert 0 < float(once.explained[0]) <= 1
    assert once.chosen == turned.chosen
    assert once.coefficients == pytest.approx([-one for one in turned.coefficients], abs=1e-4)


def test_a_sum_that_is_exact_ends_early_and_without_a_warning():
    (found,) = sum_sparsely(torch.tensor([[0.0, 0.0, 2.0]]), torch.eye(3), 3)
    assert found.chosen == (2,)
    assert float(found.explained[-1]) == pytest.approx(1)


def test_tokens_whose_directions_were_added_are_found(tiny_model):
    rows = torch.nn.functional.normalize(pl.models.read_token_rows(tiny_model), dim=1)
    (found,) = sum_token_directions(tiny_model, (rows[70] - 0.8 * rows[120])[None], 2)
    assert found.chosen == (70, 120)
    assert found.coefficients[0] > 0 > found.coefficients[1]


def test_what_cannot_be_summed_is_refused(tiny_model):
    for directions, dictionary, n in (
        (torch.ones(1, 3), torch.eye(3), 4), (torch.zeros(1, 3), torch.eye(3), 1),
        (torch.ones(1, 3), torch.zeros(3, 3), 1), (torch.ones(1, 3), torch.eye(3), 0),
    ):  # fmt: skip
        with pytest.raises(pl.errors.InvalidArgumentError):
            sum_sparsely(directions, dictionary, n)
    with pytest.raises(pl.errors.InvalidArgumentError, match="directions"):
        sum_token_directions(tiny_model, torch.ones(1, 47), 2)
