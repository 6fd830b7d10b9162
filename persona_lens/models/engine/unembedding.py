"""What directions write through the unembedding, if nothing after them reads them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.tensors.directions import normalize

_BASIS_AT_ONCE = 64


@checked
@torch.no_grad()
def unembed_directions(
    model: HookedModel, directions: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "direction vocab"]:
    r"""Return what each direction adds to every token's logit, in standard deviations over the vocabulary.

    .. math:: w = \tfrac12 \bigl( f(u) - f(-u) \bigr), \quad f(u) = W_U \operatorname{norm}(u)

    So the final norm's gain is applied, and its centring where it has one, and no bias counts. Its divisor, one
    positive number for all tokens, drops out as ``w`` is shifted to mean 0 and scaled to standard deviation 1. Lengths
    of the directions do not matter.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered. The norm is computed as the model does, the product
            with the unembedding in the model's dtype.
        directions: In the residual stream, of any layer.

    Returns:
        Float32 on the CPU; rows that pad the vocabulary are left out.

    Raises:
        InvalidArgumentError: A direction without length, or of another width than the model's.
        HooksPresentError: The model carries hooks.

    Reference:
        nostalgebraist, Interpreting GPT: the Logit Lens (2020), of a direction in place of an activation.

    Example:
        >>> import persona_lens as pl
        >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
        >>> pl.models.unembed_directions(model, vector.directions).shape  # doctest: +SKIP
        torch.Size([30, 49152])
    """
    if directions.shape[1] != model.cfg.d_model:
        raise InvalidArgumentError.of("directions", f"have width {model.cfg.d_model}", directions.shape[1])
    check_unsteered(model)
    # As long as the norm makes them, so that what it adds to its divisor against zero is next to nothing.
    scaled = normalize(directions).float() * math.sqrt(model.cfg.d_model)
    both = torch.stack([scaled, -scaled], dim=1).to(model.cfg.device, model.cfg.dtype)  # [direction, sign, d_model]
    written: Tensor = model.unembed(model.ln_final(both)).float().cpu()
    odd = (written[:, 0] - written[:, 1])[:, : len(model.tokenizer)] / 2
    centred = odd - odd.mean(dim=1, keepdim=True)
    spread = centred.std(dim=1, correction=0, keepdim=True)
    if not bool((spread > 0).all()):
        raise InvalidArgumentError.of("directions", "reach the logits", "one that the final norm takes out")
    scores: Tensor = centred / spread
    return scores


@checked
@torch.no_grad()
def read_token_rows(model: HookedModel) -> Float[Tensor, "vocab d_model"]:
    r"""Return, for each token, the direction in the residual stream that raises its logit.

    .. math:: D_{ti} = \tfrac12 \bigl( f_t(e_i) - f_t(-e_i) \bigr) - \operatorname{mean}_t, \quad
        f(u) = W_U \operatorname{norm}(u)

    The unembedding's rows with the final norm's gain, and its centring where it has one; less their mean over the
    vocabulary, which raises all logits alike and so says nothing.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.

    Returns:
        Float32 on the CPU, up to one factor; ``vocab * d_model`` numbers, 113 MB for the embedded model. Rows that pad
        the vocabulary are left out.

    Raises:
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> pl.models.read_token_rows(pl.load_model()).shape  # doctest: +SKIP
        torch.Size([49152, 576])
    """
    check_unsteered(model)
    n_tokens, parts = len(model.tokenizer), []
    for basis in (torch.eye(model.cfg.d_model) * math.sqrt(model.cfg.d_model)).split(_BASIS_AT_ONCE):
        both = torch.stack([basis, -basis], dim=1).to(model.cfg.device, model.cfg.dtype)
        written: Tensor = model.unembed(model.ln_final(both)).float().cpu()
        parts.append((written[:, 0] - written[:, 1])[:, :n_tokens] / 2)
    rows = torch.cat(parts).T.contiguous()
    return rows - rows.mean(dim=0)
