"""Sums of few directions, on dictionaries of which one knows what is in a vector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp

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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 40), st.integers(4, 16), st.integers(1, 4))
def test_terms_coefficients_and_shares_are_those_of_scikit_learn(seed, n_atoms, width, n_terms):
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.nn.functional.normalize(torch.randn(n_atoms, width, generator=generator), dim=1)
    unit = torch.nn.functional.normalize(torch.randn(1, width, generator=generator), dim=1)
    (found,) = sum_sparsely(unit, dictionary, n_terms)
    for n in range(1, n_terms + 1):
        theirs = torch.from_numpy(
            orthogonal_mp(dictionary.double().T.numpy(), unit[0].double().numpy(), n_nonzero_coefs=n)
        )
        assert set(theirs.nonzero().flatten().tolist()) == set(found.chosen[:n])
        left = unit[0].double() - theirs @ dictionary.double()
        assert float(found.explained[n - 1]) == pytest.approx(1 - float(left.square().sum()), abs=1e-5)
    assert found.coefficients == pytest.approx(theirs[list(found.chosen)].tolist(), abs=1e-4)


def test_a_dictionary_of_many_atoms_needs_little_beside_itself():
    """A table of atoms by atoms would be 80 GB."""
    dictionary = torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0))
    (found,) = sum_sparsely(dictionary[77_000:77_001] + 0.3 * dictionary[5], dictionary, 4)
    assert len(set(found.chosen)) == 4
    assert float(found.explained[-1]) > 0.9


def test_atoms_that_stand_there_twice_and_do_not_span_the_direction_end_the_sum():
    atoms = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [3.0, 6.0, 0.0]])
    (found,) = sum_sparsely(torch.tensor([[1.0, 2.0, 5.0]]), atoms, 3)
    assert len(found.chosen) == 1
    assert float(found.explained[0]) == pytest.approx(5 / 30)


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
