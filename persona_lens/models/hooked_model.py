"""The type of a model argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

if TYPE_CHECKING:
    # Type checkers see every attribute of a Module as "Tensor | Module", which fits neither model class.
    HookedModel: TypeAlias = Any
else:
    HookedModel = nn.Module
"""A ``HookedTransformer`` or a ``TransformerBridge``; both share the hook names."""
