"""Directions in the residual stream: how they are made, and how activations are read along them.

Everything here computes in float32, whatever the input's dtype (float64 input stays float64), changes no
argument, and lets gradients through. Dot products are written as multiply-and-sum: a matrix product would be
lowered to bfloat16 under ``torch.autocast``, and its rounding depends on what else is in the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError

_MOST_ENTRIES = 2**31  # of random directions: 8 GiB


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to the dtype that the package computes in: float32, or float64 where that is what came.

    Args:
        values: Of any floating dtype; returned as it is when already float32 or float64.

    Returns:
        The same values.

    Example:
        >>> widen(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


@checked
def mean_difference(
    positive: Float[Tensor, "n_pos *shape d_model"], negative: Float[Tensor, "n_neg *shape d_model"]
) -> Float[Tensor, "*shape d_model"]:
    """Subtract the mean of the negative samples from the mean of the positive ones.

    ``v = mean(positive) - mean(negative)``, the raw (unnormalised) persona vector.

    Args:
        positive: Activations of samples that show the trait, e.g. ``"n_pos layer d_model"``.
        negative: Activations of samples that do not.

    Returns:
        The difference, in residual-stream units.

    Raises:
        InvalidArgumentError: A class has no samples, or the samples of the two classes differ in shape.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.

    Example:
        >>> mean_difference(torch.tensor([[1.0, 4.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([1., 3.])
    """
    for name, samples in (("positive", positive), ("negative", negative)):
        if len(samples) == 0:
            hint = "A mean of nothing is undefined; was every sample filtered out?"
            raise InvalidArgumentError.of(name, "hold at least one sample", 0, hint)
    _check_same_shape("negative", negative.shape[1:], "positive", positive.shape[1:])
    return widen(positive).mean(dim=0) - widen(negative).mean(dim=0)


@checked
def layer_increments(directions: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """Take the change of a direction from each layer to the next.

    ``u_0 = v_0`` and ``u_l = v_l - v_{l-1}``. Added at every layer, these sum up to ``v_l`` at layer ``l``,
    where the vectors themselves would pile up.

    Args:
        directions: One raw vector for every layer from 0 on.

    Returns:
        One increment a layer.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5.2 and appendix J: steering at all layers.

    Example:
        >>> layer_increments(torch.tensor([[1.0, 0.0], [1.0, 2.0], [4.0, 2.0]]))
        tensor([[1., 0.],
                [0., 2.],
                [3., 0.]])
    """
    wide = widen(directions)
    return torch.diff(wide, dim=0, prepend=torch.zeros_like(wide[:1]))


@checked
def normalize(directions: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """Scale each vector to length 1.

    ``u = v / |v|``. A vector without a direction is an error; adding a small number to its length would hide
    it.

    Args:
        directions: Vectors of any length above zero, tiny and huge ones included.

    Returns:
        Unit vectors.

    Raises:
        InvalidArgumentError: A vector is zero, or holds NaN or infinity.

    Example:
        >>> normalize(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    if directions.shape[-1] == 0:
        raise InvalidArgumentError.of("directions", "hold vectors of at least one entry", tuple(directions.shape))
    wide = widen(directions)
    largest = wide.abs().amax(dim=-1, keepdim=True)
    usable = torch.isfinite(largest) & (largest > 0)
    if not usable.all():
        where = torch.nonzero(~usable.squeeze(-1))[0].tolist()
        value = largest.squeeze(-1)[tuple(where)].item()
        problem = "The vector is zero" if value == 0 else "The vector holds NaN or infinity"
        place = f" at index {tuple(where)}." if where else "."
        rule = "hold finite, nonzero vectors"
        got = f"largest absolute entry {value}"
        raise InvalidArgumentError.of("directions", rule, got, problem + place)
    # The division keeps the squares inside the norm from underflowing or overflowing.
    scaled = wide / largest
    lengths: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / lengths


@checked
def project(
    activations: Float[Tensor, "*batch d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "*batch"]:
    """Read the coordinate of activations along the unit direction.

    ``h · v / |v|``; the length of ``direction`` does not matter.

    Args:
        activations: Of any floating dtype and device.
        direction: Raw or unit vector; moved to the device of ``activations``.

    Returns:
        Coordinates in residual-stream units, on the device of ``activations``.

    Raises:
        InvalidArgumentError: ``direction`` is zero or not finite, or of another width than ``activations``.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> project(torch.tensor([[3.0, 1.0], [-1.0, 7.0]]), torch.tensor([10.0, 0.0]))
        tensor([ 3., -1.])
    """
    _check_same_shape("direction", direction.shape, "activations", activations.shape[-1:])
    return (widen(activations) * normalize(direction).to(activations.device)).sum(dim=-1)


@checked
def project_layers(
    activations: Float[Tensor, "layer *batch d_model"], directions: Float[Tensor, "layer d_model"]
) -> Float[Tensor, " layer *batch"]:
    """Read each layer's activations along that layer's unit direction.

    Args:
        activations: Residual stream of every layer.
        directions: One raw or unit vector a layer.

    Returns:
        Coordinates in residual-stream units.

    Raises:
        InvalidArgumentError: A direction is zero or not finite, or the number of layers or the widths differ.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> project_layers(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([[1.],
                [4.]])
    """
    _check_same_shape("directions", directions.shape[:1], "activations", activations.shape[:1])
    layers = zip(activations, directions, strict=True)
    return torch.stack([project(values, direction) for values, direction in layers])


@checked
def cosine(a: Float[Tensor, "*batch d_model"], b: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """Take the cosine of the angle between vectors.

    ``a · b / (|a| |b|)``, kept inside [-1, 1].

    Args:
        a: Vectors.
        b: As many vectors of the same width.

    Returns:
        One cosine a pair.

    Raises:
        InvalidArgumentError: A vector is zero or not finite, or the shapes differ.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix G.2.

    Example:
        >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor(0.6000)
    """
    _check_same_shape("b", b.shape, "a", a.shape)
    return (normalize(a) * normalize(b)).sum(dim=-1).clamp(-1.0, 1.0)


@checked
def sample_random_directions(
    norms: Float[Tensor, " layer"], d_model: int, n_directions: int, seed: int
) -> Float[Tensor, "n_directions layer d_model"]:
    """Draw random directions with given lengths, the null that a persona vector has to beat.

    Isotropic: Gaussian vectors, each rescaled to the length asked for at its layer.

    Args:
        norms: Length of the vectors at each layer, in residual-stream units.
        d_model: Width of the residual stream.
        n_directions: How many to draw for each layer, independently.
        seed: Drawn on the CPU, so that a seed gives the same directions on every device.

    Returns:
        Float32, on the device of ``norms``.

    Raises:
        InvalidArgumentError: A norm is not finite and positive, or a count is below 1.

    Example:
        >>> nulls = sample_random_directions(torch.tensor([1.0, 5.0]), d_model=64, n_directions=3, seed=0)
        >>> nulls.shape, nulls.norm(dim=-1)[0]
        (torch.Size([3, 2, 64]), tensor([1.0000, 5.0000]))
    """
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise InvalidArgumentError.of("norms", "be finite and positive", norms.tolist())
    for name, count in (("d_model", d_model), ("n_directions", n_directions)):
        if count < 1:
            raise InvalidArgumentError.of(name, "be at least 1", count)
    if (size := n_directions * len(norms) * d_model) > _MOST_ENTRIES:
        rule = f"make at most {_MOST_ENTRIES:,} numbers with `norms` and `d_model`"
        raise InvalidArgumentError.of("n_directions", rule, f"{n_directions}, {size:,} numbers")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    gaussian = torch.randn((n_directions, len(norms), d_model), generator=generator, dtype=torch.float32)
    return normalize(gaussian).to(norms.device) * norms.to(torch.float32)[:, None]


def _check_same_shape(name: str, shape: torch.Size, other_name: str, other: torch.Size) -> None:
    """Refuse shapes that differ; left to themselves, some of them would broadcast."""
    if shape != other:
        rule = f"match `{other_name}` in shape, here {tuple(other)}"
        raise InvalidArgumentError.of(name, rule, tuple(shape))
