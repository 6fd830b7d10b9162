"""Means of activations: over the tokens of a span, and over a stream of samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.errors import InvalidArgumentError, describe_violation
from persona_lens.tensors.directions import widen


def masked_sum(
    activations: Float[Tensor, "*batch pos d_model"], mask: Bool[Tensor, "*batch pos"]
) -> Float[Tensor, "*batch d_model"]:
    """Sum over the positions that the mask selects.

    Float32 (float64 input stays float64). What lies outside the mask has no influence, be it NaN or infinity.

    Args:
        activations: Of any floating dtype.
        mask: True at the positions to sum, e.g. ``is_response``.

    Returns:
        One sum a row; zero for a row without a selected position.

    Raises:
        InvalidArgumentError: The mask does not have the shape of ``activations`` without its last axis.

    Example:
        >>> masked_sum(torch.tensor([[1.0], [2.0], [torch.nan]]), torch.tensor([True, True, False]))
        tensor([3.])
    """
    if mask.shape != activations.shape[:-1]:
        rule = f"have the shape {tuple(activations.shape[:-1])} of `activations` without d_model"
        raise InvalidArgumentError(describe_violation("mask", rule, tuple(mask.shape)))
    # Selected, not multiplied by the mask: 0 * NaN is NaN.
    return widen(activations).masked_fill(~mask[..., None], 0.0).sum(dim=-2)


def masked_mean(
    activations: Float[Tensor, "*batch pos d_model"], mask: Bool[Tensor, "*batch pos"]
) -> Float[Tensor, "*batch d_model"]:
    """Average over the positions that the mask selects.

    Float32 (float64 input stays float64). What lies outside the mask has no influence, be it NaN or infinity.

    Args:
        activations: Of any floating dtype.
        mask: True at the positions to average, e.g. ``is_response``.

    Returns:
        One mean a row.

    Raises:
        InvalidArgumentError: A row has no selected position, or the mask does not have the shape of
            ``activations`` without its last axis.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2: the mean over response tokens.

    Example:
        >>> masked_mean(torch.tensor([[1.0], [2.0], [torch.nan]]), torch.tensor([True, True, False]))
        tensor([1.5000])
    """
    total = masked_sum(activations, mask)
    counts = mask.sum(dim=-1)
    if (counts == 0).any():
        empty = [tuple(index) for index in torch.nonzero(counts == 0).tolist()]
        hint = "A mean over no token is undefined; leave empty rows out and count them."
        rule = "select at least one position in every row"
        raise InvalidArgumentError(describe_violation("mask", rule, f"empty rows {empty}", hint))
    return total / counts[..., None]


class StreamingMean:
    """Mean of samples that arrive in batches; memory does not grow with their number.

    Sums are kept in float64 (float32 on Apple's MPS, which has no float64), so that the result is that of one
    mean over all samples, in whatever batches and order they came. No gradients are kept.

    Example:
        >>> running = StreamingMean()
        >>> running.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> running.update(torch.tensor([[5.0, 6.0]]))
        >>> running
        StreamingMean(count=3, shape=(2,))
        >>> running.mean
        tensor([3., 4.])
    """

    def __init__(self) -> None:
        """Start with no samples; the first batch settles the shape and the device."""
        self._count = 0
        self._sum: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return self._count

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """The mean of all samples so far, float32; asking before the first one is an InvalidArgumentError."""
        if self._sum is None or self._count == 0:
            hint = "A mean of nothing is undefined; call `update` with at least one sample first."
            raise InvalidArgumentError(describe_violation("count", "be at least 1", self._count, hint))
        return (self._sum / self._count).to(torch.float32)

    def update(self, values: Float[Tensor, " n *shape"]) -> None:
        """Add a batch of samples.

        Args:
            values: The samples, along the first axis; a batch of none is allowed.

        Raises:
            InvalidArgumentError: The samples have another shape than earlier ones.
        """
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        self._add(values.detach().sum(dim=0, dtype=dtype), len(values), "values")

    def merge(self, other: StreamingMean) -> None:
        """Add all samples of another stream, which stays as it is.

        Args:
            other: A stream of samples of the same shape; its sums are moved to this one's device.

        Raises:
            InvalidArgumentError: Its samples have another shape.
        """
        if other._sum is not None:
            self._add(other._sum, other._count, "other")

    def _add(self, total: Tensor, count: int, name: str) -> None:
        """Add a sum of ``count`` samples; ``name`` is the caller's argument, for the message."""
        if self._sum is None:
            self._sum = total
        elif total.shape != self._sum.shape:
            rule = f"hold samples of shape {tuple(self._sum.shape)}, like the earlier ones"
            raise InvalidArgumentError(describe_violation(name, rule, tuple(total.shape)))
        else:
            # A new tensor: after `merge` the old one may belong to the other stream.
            self._sum = self._sum + total.to(self._sum)
        self._count += count

    def __repr__(self) -> str:
        """Show the count and the samples' shape."""
        shape = None if self._sum is None else tuple(self._sum.shape)
        return f"StreamingMean(count={self._count}, shape={shape})"
