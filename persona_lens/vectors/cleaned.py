"""Mean differences cleaned of what is not the trait's: ordinary variation, and what several traits share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.loading import ModelInfo
from persona_lens.tensors.directions import mean_difference, normalize
from persona_lens.vectors.persona_vector import PersonaVector

# What is left of a difference that lay in what is removed is rounding: float32 knows about seven digits.
_LEAST_LEFT = 1e-5


@checked
@dataclass(frozen=True, eq=False)
class CleanedDifference:
    r"""The mean difference without its part in the top principal components of ordinary text's activations.

    .. math:: u = d - \sum_{k \le K} (d \cdot c_k) \, c_k, \quad d = \bar a_+ - \bar a_-

    Ordinary answers differ most in topic, length and manner. What of the difference lies along these few directions
    is more likely to be such a confound, or one very large dimension, than the trait.

    When to use it: where the answers of the two sides differ in what ordinary text differs in as well. It throws away
    what the trait has in common with that, so count components sparingly, and never on what the vector is judged by.

    Memory: ``text * layer * d_model`` numbers of 4 bytes for the ordinary text, kept with the estimator; one layer's
    in 8 bytes while it works.

    Args:
        ordinary: Mean activations of ordinary answers, from :func:`persona_lens.vectors.read_response_means`.
        n_components: How many of the top components are removed; at least 1, below the number of texts and the width.

    Raises:
        InvalidArgumentError: More components than texts or dimensions allow, or a number that is not finite.

    Reference:
        Mu, Bhat and Viswanath, All-but-the-Top (arXiv 1702.01417), for word vectors.

    Example:
        >>> ordinary = torch.tensor([[[-9.0, 0.0]], [[9.0, 0.1]], [[0.0, 0.0]]])
        >>> positive = torch.tensor([[5.0, 1.0], [5.0, 1.0]])
        >>> found = CleanedDifference(ordinary, n_components=1).estimate(positive, -positive, 0)
        >>> (found / found.norm()).round(decimals=1)
        tensor([-0., 1.])
    """

    ordinary: Float[Tensor, "text layer d_model"]
    n_components: int

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.ordinary.ndim != 3:
            rule = "have shape (text, layer, d_model)"
            raise InvalidArgumentError.of("ordinary", rule, tuple(self.ordinary.shape))
        most = min(self.ordinary.shape[0], self.ordinary.shape[2]) - 1
        if not 1 <= self.n_components <= most:
            rule = f"be in [1, {most}], below the number of texts and the width of `ordinary`"
            raise InvalidArgumentError.of("n_components", rule, self.n_components)
        if not bool(torch.isfinite(self.ordinary).all()):
            raise InvalidArgumentError.of("ordinary", "be finite", "NaN or infinity")

    def estimate(
        self, positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return what is left of the difference of the means."""
        from sklearn.decomposition import PCA  # slow to import

        _check_place("ordinary", self.ordinary.shape[1:], layer, positive.shape[1])
        texts = self.ordinary[:, layer].double().cpu().numpy()
        components = PCA(n_components=self.n_components, svd_solver="full").fit(texts).components_
        return _remove(mean_difference(positive, negative), torch.from_numpy(components))


@checked
@dataclass(frozen=True, eq=False)
class WithoutShared:
    r"""The mean difference without the direction that several traits' vectors share, at each layer.

    .. math:: u = d - (d \cdot m) \, m, \quad m \propto \sum_t v_t / |v_t|, \quad |m| = 1

    Much of a vector is one common direction, away from the assistant's manner: two traits' vectors often have a cosine
    of a half. The mean of their unit vectors is that direction, whatever the vectors' lengths.

    When to use it: where a vector should be its trait's alone, to read it beside others or to move nothing else. If
    only a few traits are given, or the trait's near relatives alone, it takes away part of the trait.

    Memory: the vectors themselves, ``trait * layer * d_model`` numbers of 4 bytes.

    Args:
        others: Vectors of at least two traits of one model, at one token position; the trait's own may be among them.

    Raises:
        InvalidArgumentError: Fewer than two vectors, or different token positions.
        ModelMismatchError: Vectors of different models.

    Reference:
        Kin to removing a common component, as in All-but-the-Top (arXiv 1702.01417), section 2; the vectors' cosines:
        Persona Vectors (arXiv 2507.21509), appendix G.2.

    Example:
        >>> import persona_lens as pl
        >>> others = tuple(pl.load_vector(name) for name in ("sycophancy", "humorous", "formality"))
        >>> estimator = pl.vectors.WithoutShared(others)
        >>> vector = pl.vectors.find_vector(pairs, estimator)  # doctest: +SKIP
    """

    others: tuple[PersonaVector, ...]

    def __post_init__(self) -> None:
        """Check the field."""
        if len(self.others) < 2:
            raise InvalidArgumentError.of("others", "hold the vectors of at least 2 traits", len(self.others))
        if len({one.model.fingerprint for one in self.others}) > 1:
            names = sorted({f"{one.model.name} ({one.model.fingerprint})" for one in self.others})
            raise ModelMismatchError.of("others", "come from one model", names)
        if len(positions := sorted({one.position for one in self.others})) > 1:
            raise InvalidArgumentError.of("others", "use one token position", positions, "See .at().")

    def check_model(self, model: ModelInfo) -> None:
        """Refuse activations of another model than the vectors'.

        Raises:
            ModelMismatchError: Another model.
        """
        mine = self.others[0].model
        if mine.fingerprint != model.fingerprint:
            raise ModelMismatchError.of("others", f"come from the pairs' model, {model.name}", mine.name)

    def estimate(
        self, positive: Float[Tensor, "pair d_model"], negative: Float[Tensor, "pair d_model"], layer: int
    ) -> Float[Tensor, " d_model"]:
        """Return what is left of the difference of the means."""
        _check_place("others", self.others[0].directions.shape, layer, positive.shape[1])
        shared = torch.stack([one.unit(layer) for one in self.others]).double().mean(dim=0)
        return _remove(mean_difference(positive, negative), normalize(shared)[None])


def _check_place(name: str, known: tuple[int, ...], layer: int, d_model: int) -> None:
    """Refuse what was read from a model of other layers or another width."""
    if not 0 <= layer < known[0] or known[1] != d_model:
        rule = f"have the pairs' width, d_model={d_model}, and their layers, {layer} among them"
        raise InvalidArgumentError.of(name, rule, f"(layer, d_model) = {tuple(known)}")


def _remove(difference: Float[Tensor, " d_model"], axes: Float[Tensor, "axis d_model"]) -> Float[Tensor, " d_model"]:
    """Remove a vector's part along orthonormal axes; refuse one of which nothing but rounding is left."""
    wide, axes = difference.double(), axes.to(difference.device)
    left = wide - axes.T @ (axes @ wide)
    if float(left.norm()) <= _LEAST_LEFT * float(wide.norm()):
        rule = "differ in more than what is removed"
        raise InvalidArgumentError.of("positive", rule, "a mean difference that lies wholly in it", "Remove less.")
    return left.float()
