"""How well an autoencoder stands for the activations of texts that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import cache_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import HookPair, attached, check_unsteered
from persona_lens.models.hooks.sites import check_layer, hook_name
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import TokenSpans, check_spans
from persona_lens.records import Record
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.vectors.contents.autoencoders import SparseAutoencoder

_ROWS_AT_ONCE = 8
Change = Callable[[Tensor], Tensor]


@checked
@dataclass(frozen=True, eq=False)
class Reconstruction(Record):
    """An autoencoder measured on responses' tokens.

    Losses are nats a token of the next-token prediction, averaged over a response and then over responses, while the
    residual stream at the response's tokens is: left alone, reconstructed, or put in place by its mean.

    Args:
        explained_variance: Share of the squared distance from the mean that reconstructions keep, over all tokens.
        n_firing: Mean number of features that fire at a token.
        never_fired: Share of the features that fire at no token here.
        loss: Of the model as it is.
        loss_reconstructed: Of the model on reconstructions.
        loss_averaged: Of the model on the mean activation.
        n_tokens: Tokens.
        n_texts: Responses.
    """

    explained_variance: float
    n_firing: float
    never_fired: float
    loss: Interval
    loss_reconstructed: Interval
    loss_averaged: Interval
    n_tokens: int
    n_texts: int

    @property
    def loss_recovered(self) -> float:
        """Share of what averaging costs that reconstructions do not."""
        cost = self.loss_averaged.estimate - self.loss.estimate
        return (self.loss_averaged.estimate - self.loss_reconstructed.estimate) / cost


@checked
def measure_reconstruction(
    model: HookedModel, autoencoder: SparseAutoencoder, spans: Sequence[TokenSpans], *, layer: int | None = None
) -> Reconstruction:
    """Measure an autoencoder on the responses of conversations: never on those that it was trained on.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        autoencoder: Of that model's residual stream.
        spans: Two or more conversations, such as :func:`persona_lens.models.encode_conversation` makes.
        layer: Zero-based block index; None takes the autoencoder's own.

    Raises:
        InvalidArgumentError: Fewer than two texts, another width, or no layer.
        ContextLengthError: A conversation longer than the model's context.
        HooksPresentError: The model carries hooks.

    Reference:
        SAEBench (arXiv 2503.09532) for explained variance and recovered loss, there against a stream of zeros.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.measure_reconstruction(model, autoencoder, spans).explained_variance  # doctest: +SKIP
    """
    layer = check_place(model, autoencoder, layer)
    if len(spans) < 2:
        raise InvalidArgumentError.of("spans", "hold at least two texts", len(spans))
    check_spans(spans, model.cfg.n_ctx, model.cfg.d_vocab)
    check_unsteered(model)
    read = read_response_tokens(model, spans, layer)
    mean = read.mean(dim=0)
    features = autoencoder.encode(read)
    missed = (read - autoencoder.decode(features)).square().sum()
    ways: dict[str, Change] = {
        "loss": lambda tokens: tokens,
        "loss_reconstructed": lambda tokens: autoencoder.decode(autoencoder.encode(tokens)),
        "loss_averaged": lambda tokens: mean.expand_as(tokens),
    }
    return Reconstruction(
        explained_variance=float(1 - missed / (read - mean).square().sum()),
        n_firing=float((features > 0).sum(dim=1).float().mean()),
        never_fired=float((~(features > 0).any(dim=0)).float().mean()),
        **{name: bootstrap_mean(_measure_losses(model, spans, layer, change)) for name, change in ways.items()},
        n_tokens=len(read),
        n_texts=len(spans),
    )


def check_place(model: HookedModel, autoencoder: SparseAutoencoder, layer: int | None) -> int:
    """Return the layer that an autoencoder is used at, and refuse one that does not fit the model.

    Raises:
        InvalidArgumentError: Another width, or no layer.
    """
    if autoencoder.decoder.shape[1] != model.cfg.d_model:
        raise InvalidArgumentError.of("autoencoder", f"have width {model.cfg.d_model}", autoencoder.decoder.shape[1])
    chosen = autoencoder.layer if layer is None else layer
    if chosen is None:
        raise InvalidArgumentError.of("layer", "be given, as the autoencoder does not say its own", None)
    return check_layer(chosen, model.cfg.n_layers)


@checked
def read_response_tokens(model: HookedModel, spans: Sequence[TokenSpans], layer: int) -> Float[Tensor, "token d_model"]:
    """Read the residual stream after a layer at every token of conversations' responses.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        spans: Conversations, such as :func:`persona_lens.models.encode_conversation` makes.
        layer: Zero-based block index.

    Returns:
        Float32 on the CPU, response after response.

    Raises:
        InvalidArgumentError: No conversation, or an empty response.
        LayerOutOfRangeError: A layer that the model does not have.
        ContextLengthError: A conversation longer than the model's context.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.read_response_tokens(model, spans, 15).shape  # doctest: +SKIP
        torch.Size([1240, 576])
    """
    layer = check_layer(layer, model.cfg.n_layers)
    if len(spans) == 0:
        raise InvalidArgumentError.of("spans", "hold at least one text", spans)
    check_spans(spans, model.cfg.n_ctx, model.cfg.d_vocab)
    check_unsteered(model)
    parts = []
    for at in range(0, len(spans), _ROWS_AT_ONCE):
        batch = spans[at : at + _ROWS_AT_ONCE]
        padded = pad_right([one.tokens[: one.response_end] for one in batch])
        residual = cache_residual_stream(model, padded.tokens, is_padding=padded.is_padding)[layer]
        parts += [residual[row, one.response_start : one.response_end].float().cpu() for row, one in enumerate(batch)]
    return torch.cat(parts)


def _measure_losses(
    model: HookedModel, spans: Sequence[TokenSpans], layer: int, change: Change
) -> Float[Tensor, " text"]:
    """Return each response's loss a token while something is done to the residual stream at its tokens."""
    losses = []
    for at in range(0, len(spans), _ROWS_AT_ONCE):
        batch = spans[at : at + _ROWS_AT_ONCE]
        padded = pad_right([one.tokens[: one.response_end] for one in batch])

        def act(residual: Tensor, hook: object, batch: Sequence[TokenSpans] = batch) -> Tensor:
            changed = residual.clone()
            for row, one in enumerate(batch):
                place = slice(one.response_start, one.response_end)
                changed[row, place] = change(residual[row, place].float().cpu()).to(residual)
            return changed

        hooks: list[HookPair] = [(hook_name(layer), act)]
        mask = (~padded.is_padding).long().to(model.cfg.device)
        with torch.no_grad(), attached(model, hooks):
            logits = model(padded.tokens.to(model.cfg.device), return_type="logits", attention_mask=mask)
        for row, one in enumerate(batch):
            # The first token is predicted before anything is changed.
            predicted = logits[row, one.response_start : one.response_end - 1].float().log_softmax(dim=-1)
            said = torch.tensor(one.response_tokens[1:], device=predicted.device)
            losses.append(-predicted.gather(-1, said[:, None]).mean().cpu())
    return torch.stack(losses)
