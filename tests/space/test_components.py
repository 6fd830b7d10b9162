import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from persona_lens.errors import InvalidArgumentError
from persona_lens.space import find_components, match_components


@given(st.integers(3, 12), st.integers(2, 9), st.integers(0, 10**6))
def test_components_are_those_of_scikit_learn(n, d_model, seed):
    vectors = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    k = min(n - 1, d_model)
    found, oracle = find_components(vectors, k), PCA(k).fit(vectors.numpy())
    assert found.shares.numpy() == pytest.approx(oracle.explained_variance_ratio_, abs=1e-9)
    overlap = (found.directions * torch.from_numpy(oracle.components_)).sum(dim=1).abs()
    assert overlap.numpy() == pytest.approx(1, abs=1e-5)
    assert found.center.numpy() == pytest.approx(oracle.mean_)


@given(st.permutations(range(5)), st.lists(st.sampled_from([-1.0, 1.0]), min_size=5, max_size=5))
def test_components_that_were_shuffled_and_turned_are_matched(order, signs):
    basis = torch.linalg.qr(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))[0].T
    other = basis[list(order)] * torch.tensor(signs)[:, None]
    index, turn = match_components(basis @ other.T)
    assert torch.allclose(other[index] * turn[:, None], basis, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "n", "named"),
    [(torch.ones(4, 3), 1, "vectors"), (torch.eye(4), 4, "n_components"), (torch.eye(4), 0, "n_components"),
     (torch.full((3, 3), torch.nan), 1, "vectors")],
)  # fmt: skip
def test_what_has_no_components_is_refused(vectors, n, named):
    with pytest.raises(InvalidArgumentError, match=named):
        find_components(vectors, n)


def test_fewer_others_than_components_are_refused():
    with pytest.raises(InvalidArgumentError, match="cosines"):
        match_components(torch.eye(3)[:, :2])
