"""Principal components of a few vectors, and how components of one sample are matched with those of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError


@checked
@dataclass(frozen=True, eq=False)
class Components:
    """Orthogonal directions along which vectors vary, the one of most variance first.

    Args:
        center: The vectors' mean.
        directions: Unit vectors.
        variances: Sum of squares along each, divided by the number of vectors.
        total: The same along all there are.
    """

    center: Float[Tensor, " d_model"]
    directions: Float[Tensor, "component d_model"]
    variances: Float[Tensor, " component"]
    total: float

    @property
    def shares(self) -> Float[Tensor, " component"]:
        """Share of the variance that each explains."""
        return self.variances / self.total

    def cosines(self, vectors: Float[Tensor, "vector d_model"]) -> Float[Tensor, "vector component"]:
        """Return the cosine of each vector, less the center, with each component; 0 for the center itself.

        Raises:
            InvalidArgumentError: Vectors that are not finite.
        """
        if not vectors.isfinite().all():
            raise InvalidArgumentError.of("vectors", "be finite", vectors)
        return unit_or_zero(vectors.double() - self.center) @ self.directions.double().T


@checked
def find_components(vectors: Float[Tensor, "vector d_model"], n_components: int) -> Components:
    r"""Find the principal components of vectors about their mean.

    .. math:: X - \bar x = U S V^\top, \qquad \text{component}_k = V_k, \qquad \text{variance}_k = S_k^2 / n

    Args:
        vectors: At least two, such as each role's mean residual stream at a layer.
        n_components: How many; below the number of vectors.

    Returns:
        In float64. Signs are arbitrary: each component's largest entry is positive.

    Raises:
        InvalidArgumentError: Too few vectors, all alike, or not finite.

    Example:
        >>> found = find_components(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.1], [0.0, -0.1]]), 1)
        >>> found.directions.tolist(), round(float(found.shares[0]), 2)
        ([[1.0, 0.0]], 0.99)
    """
    n, d_model = vectors.shape
    most = min(n - 1, d_model)
    if not 1 <= n_components <= most:
        rule = f"be in [1, {most}], as there are {n} vectors of {d_model} entries"
        raise InvalidArgumentError.of("n_components", rule, n_components)
    if not bool(torch.isfinite(vectors).all()):
        raise InvalidArgumentError.of("vectors", "be finite", "NaN or infinity")
    wide = vectors.double()
    center = wide.mean(dim=0)
    _, sizes, directions = torch.linalg.svd(wide - center, full_matrices=False)
    variances = sizes**2 / n
    total = float(variances.sum())
    if total <= 1e-24 * float((wide**2).mean()):
        raise InvalidArgumentError.of("vectors", "differ from each other", f"{n} times the same")
    kept = directions[:n_components]
    largest = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    return Components(center, kept * largest.sign(), variances[:n_components], total)


@checked
def match_components(
    cosines: Float[Tensor, "component other"],
) -> tuple[Int[Tensor, " component"], Float[Tensor, " component"]]:
    """Pair each component with one of another sample, so that the absolute cosines add up to the most.

    Args:
        cosines: Of each component with each of the other's, of which there are at least as many.

    Returns:
        Which of the other's belongs to each, and the sign that turns it the same way.

    Raises:
        InvalidArgumentError: Fewer others than components, or a cosine that is not finite.

    Example:
        >>> match_components(torch.tensor([[0.1, -0.9], [0.8, 0.2]]))
        (tensor([1, 0]), tensor([-1.,  1.]))
    """
    if cosines.shape[1] < cosines.shape[0]:
        raise InvalidArgumentError.of("cosines", "have at least as many columns as rows", tuple(cosines.shape))
    if not bool(torch.isfinite(cosines).all()):
        raise InvalidArgumentError.of("cosines", "be finite", "NaN or infinity")
    _, chosen = linear_sum_assignment(-cosines.abs().cpu().numpy())
    index = torch.from_numpy(chosen)
    signs = cosines.gather(1, index[:, None].to(cosines.device))[:, 0].sign()
    return index, torch.where(signs == 0, torch.ones_like(signs), signs)


def unit_or_zero(vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """Scale vectors to length 1; one that is nothing beside the others stays zero."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(lengths > 0, vectors / lengths.clamp(min=torch.finfo(vectors.dtype).tiny), 0.0)
