"""The residual stream of given tokens, whole or pooled over spans while it streams by; heads' outputs, pooled."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError, UnsupportedModelError
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.requests import ResidualMeans
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.recording import ResidualRecorder
from persona_lens.models.hooks.sharing import reading_one_by_one
from persona_lens.models.hooks.sites import heads_hook_name
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.spans import Part, TokenSpans, check_parts, check_spans, check_token_ids
from persona_lens.progress_bars import show_progress

T = TypeVar("T")

_TOKENS_AT_ONCE = 2048
_LENGTH_MULTIPLE = 16


@checked
def cache_residual_stream(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], *, is_padding: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, "layer batch pos d_model"]:
    """Return the residual stream after every block, and nothing else: no logits are formed.

    Runs the model's ordinary forward pass, so hooks already on the model take effect. The result has the model's
    dtype and carries no gradient.

    Args:
        model: HookedTransformer or TransformerBridge.
        tokens: Token ids, as ``model.to_tokens`` gives them.
        is_padding: True at padding, left or right. Activations there mean nothing; elsewhere they equal those of
            the row alone.

    Returns:
        Layer ``l`` is the output of ``blocks.l.hook_resid_post``, the paper's layer ``l + 1``.

    Raises:
        InvalidArgumentError: A row that is all padding, or a mask of another shape.
        ContextLengthError: More positions than the model's context.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> resid = pl.cache_residual_stream(model, model.to_tokens("Hello"))  # doctest: +SKIP
    """
    return _record(model, tokens, is_padding, lambda residual, layer: residual.detach())


@checked
def project_residual_stream(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    units: Float[Tensor, "layer direction d_model"],
    *,
    is_padding: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "layer direction batch pos"]:
    """Return each token's coordinate along one or more directions, at every layer, without keeping the activations.

    As :func:`cache_residual_stream` followed by :func:`persona_lens.project`, in float32; hooks already on the model
    take effect before the residual stream is read.

    Args:
        model: HookedTransformer or TransformerBridge.
        tokens: Token ids.
        units: Unit vectors, the same number at each layer.
        is_padding: True at padding, left or right.

    Returns:
        Coordinates in residual-stream units.

    Raises:
        InvalidArgumentError: ``units`` of other layers than the model's, or what :func:`cache_residual_stream` refuses.
        ContextLengthError: More positions than the model's context.
    """
    if units.shape[0] != model.cfg.n_layers or units.shape[2] != model.cfg.d_model:
        rule = f"have shape (layer={model.cfg.n_layers}, direction, d_model={model.cfg.d_model})"
        raise InvalidArgumentError.of("units", rule, tuple(units.shape))

    def project(residual: Tensor, layer: int) -> Tensor:
        along = units[layer].to(residual.device, torch.float32)
        # Not a matrix product: its rounding would depend on the rest of the batch.
        return torch.stack([(residual.detach().float() * unit).sum(dim=-1) for unit in along])

    return _record(model, tokens, is_padding, project)


def _record(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    is_padding: Bool[Tensor, "batch pos"] | None,
    pool: Callable[[Tensor, int], Tensor],
) -> Shaped[Tensor, "layer *pooled"]:
    """Run all blocks once, without logits or gradients, and return what ``pool`` makes of each one's output."""
    if tokens.shape[1] > model.cfg.n_ctx:
        rule = f"have at most {model.cfg.n_ctx} positions"
        raise ContextLengthError.of("tokens", rule, tokens.shape[1], "Cut them.")
    if tokens.numel() == 0:
        raise InvalidArgumentError.of("tokens", "hold at least one token", tuple(tokens.shape))
    check_token_ids("tokens", (int(tokens.min()), int(tokens.max())), model.cfg.d_vocab)
    if is_padding is None:
        is_padding = torch.zeros_like(tokens, dtype=torch.bool)
    if is_padding.shape != tokens.shape or bool(is_padding.all(dim=1).any()):
        rule = "have the shape of `tokens` and leave a token in each row"
        raise InvalidArgumentError.of("is_padding", rule, is_padding)
    # An explicit mask, always: without one TransformerLens guesses padding from token ids.
    attention_mask = (~is_padding).long().to(model.cfg.device)
    recorder = ResidualRecorder(model.cfg.n_layers)
    recorder.expect(pool)
    with torch.no_grad(), attached(model, recorder.hook_pairs()):
        model(tokens.to(model.cfg.device), attention_mask=attention_mask, stop_at_layer=model.cfg.n_layers)
    return recorder.read()


@checked
def pool_residual_stream(
    model: HookedModel, conversations: Sequence[TokenSpans], *, part: Part = "answer"
) -> Iterator[tuple[int, ResidualMeans]]:
    """Pool given conversations' residual stream over prompt, last prompt token and response, at all layers.

    Pooled inside the hooks, in float32: beyond one batch, memory grows with neither the number nor the length of
    the conversations. Batches are sorted by length; no logits are formed. While the iterator is half read the model
    refuses all else, and gradients are off: read it to its end first, or make a list of it.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: Token ids and response spans, e.g. from ``persona_lens.models.text.chat.encode_conversation``.
        part: Which part of a response with a thought is pooled.

    Yields:
        The conversation's index and its means, in order of length.

    Raises:
        InvalidArgumentError: An empty prompt or response, or a response without that part.
        ContextLengthError: A conversation longer than the model's context.
        ModelBusyError: The model does something else.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2 and appendix A.3.
    """
    recorder = ResidualRecorder(model.cfg.n_layers)
    yield from reading_one_by_one(model, _pool(model, conversations, part, recorder, _pool_spans, _make_means))


@checked
def pool_heads(
    model: HookedModel, conversations: Sequence[TokenSpans], *, part: Part = "answer"
) -> Iterator[tuple[int, Float[Tensor, "layer head d_head"]]]:
    """Average each attention head's output over given conversations' responses, at all layers.

    A head's output is what it adds up from the values it attends to, before the output projection: ``hook_z``. Pooled
    inside the hooks, in float32, as :func:`pool_residual_stream` does: beyond one batch, memory grows with neither the
    number nor the length of the conversations.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: Token ids and response spans, e.g. from ``persona_lens.models.text.chat.encode_conversation``.
        part: Which part of a response with a thought is averaged over.

    Yields:
        The conversation's index and its response's means, in order of length.

    Raises:
        InvalidArgumentError: An empty prompt or response, or a response without that part.
        ContextLengthError: A conversation longer than the model's context.
        UnsupportedModelError: A layer without a hook point at its heads' outputs.
        ModelBusyError: The model does something else.

    Reference:
        Inference-Time Intervention (arXiv 2306.03341), section 3.1, there at the last token.
    """
    names = [heads_hook_name(layer) for layer in range(model.cfg.n_layers)]
    missing = [name for name in names if name not in model.hook_dict]
    if missing:
        raise UnsupportedModelError.of("model", "have a hook point at each layer's heads", f"none at {missing}")
    recorder = ResidualRecorder(model.cfg.n_layers, heads_hook_name)
    yield from reading_one_by_one(model, _pool(model, conversations, part, recorder, _pool_response, Tensor.clone))


@checked
def pool_ends(
    model: HookedModel, conversations: Sequence[TokenSpans], *, part: Part = "answer"
) -> Iterator[tuple[int, Float[Tensor, "layer 3 d_model"]]]:
    """Read given conversations' residual stream at the last prompt token, over the response and at its last token.

    As :func:`pool_residual_stream`, with the response's last token in place of the prompt's mean.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: Token ids and response spans.
        part: Which part of a response with a thought is pooled.

    Yields:
        The conversation's index, and what was read in the order named, in order of length.

    Raises:
        InvalidArgumentError: An empty prompt or response, or a response without that part.
        ContextLengthError: A conversation longer than the model's context.
        ModelBusyError: The model does something else.
    """
    recorder = ResidualRecorder(model.cfg.n_layers)
    yield from reading_one_by_one(model, _pool(model, conversations, part, recorder, _pool_ends, Tensor.clone))


def _pool(
    model: HookedModel,
    conversations: Sequence[TokenSpans],
    part: Part,
    recorder: ResidualRecorder,
    pool: Callable[[Tensor, Tensor], Tensor],
    finish: Callable[[Tensor], T],
) -> Generator[tuple[int, T], None, None]:
    """Pool a batch's activations and spans in each layer; yield what ``finish`` makes of each conversation's layers."""
    check_spans(conversations, model.cfg.n_ctx, model.cfg.d_vocab)
    check_parts(conversations, part)
    order = sorted(range(len(conversations)), key=lambda i: (conversations[i].response_end, i))
    with (
        open_decoder(model) as decoder,
        attached(model, recorder.hook_pairs()),
        show_progress("reading (texts)", len(order)) as advance,
    ):
        at = 0
        while at < len(order):
            # Lengths rise along the order, so the batch's padded size is set by its last member.
            size = 1
            for index in order[at + 1 :]:
                if (size + 1) * conversations[index].response_end > _TOKENS_AT_ONCE:
                    break
                size += 1
            batch = order[at : at + size]
            at += size
            items = [conversations[i] for i in batch]
            tokens = pad_right([item.tokens[: item.response_end] for item in items], multiple=_LENGTH_MULTIPLE).tokens
            cache = decoder.new_cache(*tokens.shape)
            device = cache.keys.device
            spans = torch.tensor([(item.response_start, *item.find(part)) for item in items], device=device)
            recorder.expect(partial(_pool_layer, pool=pool, spans=spans))
            decoder.extend(tokens.to(device), torch.zeros(size, dtype=torch.long, device=device), cache)
            pooled = recorder.read()
            advance(size)
            for row, index in enumerate(batch):
                yield index, finish(pooled[:, row])


def _pool_layer(
    activations: Tensor, _layer: int, *, pool: Callable[[Tensor, Tensor], Tensor], spans: Int[Tensor, "row 3"]
) -> Tensor:
    return pool(activations, spans)


def _make_means(pooled: Float[Tensor, "layer 3 d_model"]) -> ResidualMeans:
    response, prompt, last = pooled.unbind(dim=1)
    return ResidualMeans(response.clone(), prompt.clone(), last.clone())


def _pool_response(
    z: Float[Tensor, "row pos head d_head"], spans: Int[Tensor, "row 3"]
) -> Float[Tensor, "row head d_head"]:
    """Return the mean of each row's heads over its response, in float32."""
    means: Tensor = _pool_spans(z.flatten(2), spans)[:, 0]
    return means.reshape(-1, *z.shape[2:])


def _pool_spans(
    residual: Float[Tensor, "row pos d_model"], spans: Int[Tensor, "row 3"]
) -> Float[Tensor, "row 3 d_model"]:
    """Return response mean, prompt mean and last prompt token of each row, in float32.

    Args:
        residual: Of some texts.
        spans: One past each prompt's last token; first token that is pooled of the response, and one past the last.
    """
    positions = torch.arange(residual.shape[1], device=residual.device)
    prompt, start, end = spans.split(1, dim=1)
    is_pooled = (positions >= start) & (positions < end)
    is_prompt = positions < prompt
    is_last = positions == prompt - 1
    weights = torch.stack([is_pooled, is_prompt, is_last], dim=1).float()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ residual.float()


def _pool_ends(
    residual: Float[Tensor, "row pos d_model"], spans: Int[Tensor, "row 3"]
) -> Float[Tensor, "row 3 d_model"]:
    """Return last prompt token, response mean and last response token of each row, in float32."""
    response, _, prompt_end = _pool_spans(residual, spans).unbind(dim=1)
    rows = torch.arange(len(residual), device=residual.device)
    return torch.stack([prompt_end, response, residual[rows, spans[:, 2] - 1].float()], dim=1)
