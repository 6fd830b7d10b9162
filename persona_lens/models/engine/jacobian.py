"""Where a direction in mid-model arrives at its end, to first order, averaged over ordinary text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import HookPair, attached, check_unsteered
from persona_lens.models.hooks.sites import check_layer, hook_name
from persona_lens.models.loading.derivatives import check_tangents_pass
from persona_lens.models.text.spans import check_token_ids

# Tokens of a forward pass: so many directions go through it at once as fit.
_TOKENS_AT_ONCE = 2048


@checked
@torch.no_grad()
def transport_directions(
    model: HookedModel,
    directions: Float[Tensor, "direction d_model"],
    layer: int,
    rows: Sequence[Sequence[int]],
    *,
    n_skipped: int = 16,
) -> Float[Tensor, "direction d_model"]:
    r"""Carry directions from a layer to the last one with the Jacobian, averaged over texts.

    .. math:: J_l v, \quad J_l = \operatorname{mean}_{\text{text}} \frac{1}{|P|}
        \sum_{t \in P} \sum_{t' \in P,\, t' \ge t} \frac{\partial h_{L,t'}}{\partial h_{l,t}}

    ``P`` are a text's positions but the first ones, where activations are odd, and the last. By the chain rule it is
    how the last layer's output changes, summed over ``P`` and divided by their number, as the direction is added at
    every position of ``P``: one Jacobian-vector product a direction and text, and no matrix of ``d_model`` squared.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered; derivatives are taken in its dtype.
        directions: After ``layer``, of any length.
        layer: Zero-based block index; from the last layer a direction comes back as it is.
        rows: Token ids of each text, longer than ``n_skipped + 1``; texts count alike, whatever their length.
        n_skipped: First positions that neither start nor end a path.

    Returns:
        Float32 on the CPU, in residual-stream units of the last layer.

    Raises:
        InvalidArgumentError: No text or one too short, or directions of another width.
        LayerOutOfRangeError: A layer that the model does not have.
        ContextLengthError: A text longer than the model's context.
        HooksPresentError: The model carries hooks.
        UnsupportedModelError: Quantised weights, in whose products some libraries lose forward derivatives.

    Reference:
        Gurnee et al., Verbalizable Representations Form a Global Workspace in Language Models (Transformer Circuits
        Thread, 2026), whose lens is ``W_U norm(J h)``; `TransformerLens` fits all of ``J`` as ``JacobianLens`` where
        the model is a raw ``TransformerBridge``, by one product a dimension.

    Example:
        >>> import persona_lens as pl
        >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
        >>> rows = model.to_tokens("A text of more than seventeen tokens …").tolist()  # doctest: +SKIP
        >>> pl.models.transport_directions(model, vector.directions[14:15], 14, rows).shape  # doctest: +SKIP
        torch.Size([1, 576])
    """
    layer = check_layer(layer, model.cfg.n_layers)
    if directions.shape[1] != model.cfg.d_model or len(directions) == 0:
        rule = f"be at least one of width {model.cfg.d_model}"
        raise InvalidArgumentError.of("directions", rule, tuple(directions.shape))
    if n_skipped < 0:
        raise InvalidArgumentError.of("n_skipped", "be at least 0", n_skipped)
    if len(rows) == 0:
        raise InvalidArgumentError.of("rows", "hold at least one text", rows)
    for row in rows:
        if len(row) < n_skipped + 2:
            rule = f"hold texts of at least {n_skipped + 2} tokens, as the first {n_skipped} and the last are left out"
            raise InvalidArgumentError.of("rows", rule, len(row))
        if len(row) > model.cfg.n_ctx:
            raise ContextLengthError.of("rows", f"hold at most {model.cfg.n_ctx} tokens", len(row), "Cut them.")
        check_token_ids("rows", (min(row), max(row)), model.cfg.d_vocab)
    check_unsteered(model)
    check_tangents_pass(model)
    if layer == model.cfg.n_layers - 1:
        return directions.float().cpu()
    total = torch.zeros(len(directions), model.cfg.d_model)
    for row in rows:
        parts = directions.split(max(1, _TOKENS_AT_ONCE // len(row)))
        total += torch.cat([_push(model, part, layer, row, n_skipped) for part in parts])
    return total / len(rows)


def _push(
    model: HookedModel, directions: Float[Tensor, "direction d_model"], layer: int, row: Sequence[int], n_skipped: int
) -> Float[Tensor, "direction d_model"]:
    """Return one text's share: how its last layer changes a position as each direction is added at all of them."""
    counted = slice(n_skipped, len(row) - 1)
    arrived: list[Tensor] = []

    def start(residual: Tensor, hook: object) -> Tensor:
        tangent = torch.zeros_like(residual)
        tangent[:, counted] = directions.to(residual)[:, None]
        dual: Tensor = forward_ad.make_dual(residual, tangent)
        return dual

    def end(residual: Tensor, hook: object) -> None:
        tangent = forward_ad.unpack_dual(residual).tangent
        if tangent is None:
            raise InvalidArgumentError.of("layer", "reach the last layer", layer)
        arrived.append(tangent[:, counted].float().mean(dim=1).cpu())

    hooks: list[HookPair] = [(hook_name(layer), start), (hook_name(model.cfg.n_layers - 1), end)]
    tokens = torch.tensor([list(row)] * len(directions), device=model.cfg.device)
    mask = torch.ones_like(tokens)
    # Fused attention kernels know no forward derivative; the plain one does. What torch warns of is its own code.
    with (
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
        attached(model, hooks),
        forward_ad.dual_level(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        model(tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers)
    return arrived[-1]
