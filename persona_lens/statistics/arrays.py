"""Values in, float64 arrays out: what every statistic asks of its input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from persona_lens.errors import InvalidArgumentError


def to_array(name: str, values: Tensor, min_size: int) -> ndarray:
    """Convert to float64, refusing NaN, infinity and too few values."""
    if values.ndim != 1 or len(values) < min_size:
        rule = f"be one-dimensional with at least {min_size} value(s)"
        raise InvalidArgumentError.of(name, rule, tuple(values.shape))
    array = values.detach().to("cpu", torch.float64).numpy()
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        hint = f"{len(bad)} of {len(array)} values are not; filter them and count what was dropped."
        got = f"{array[bad[0]]} at index {bad[0]}"
        raise InvalidArgumentError.of(name, "be finite", got, hint)
    return array


def to_paired_arrays(name_a: str, a: Tensor, name_b: str, b: Tensor) -> tuple[ndarray, ndarray]:
    """Convert two measurements of the same units."""
    first, second = to_array(name_a, a, 2), to_array(name_b, b, 2)
    if len(first) != len(second):
        rule = f"have as many values as `{name_a}`, here {len(first)}"
        raise InvalidArgumentError.of(name_b, rule, len(second))
    return first, second


def to_grouped_arrays(values: Mapping[str, Tensor], groups: Sequence[Hashable]) -> tuple[list[ndarray], ndarray, int]:
    """Return several measurements of the same units, each unit's group as a number, and how many groups there are."""
    (first, x), *rest = values.items()
    arrays = [to_array(first, x, 3)]
    arrays += [to_paired_arrays(first, x, name, other)[1] for name, other in rest]
    if len(groups) != len(arrays[0]):
        raise InvalidArgumentError.of("groups", f"label each of the {len(arrays[0])} values", len(groups))
    numbers = {label: number for number, label in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 3:
        raise InvalidArgumentError.of("groups", "name at least 3 groups", list(numbers))
    return arrays, np.array([numbers[label] for label in groups]), len(numbers)
