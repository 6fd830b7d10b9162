"""A conversation's projections: its own response, the model's own response to the same prompt, and the prompt alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.conversations import BadRow, Conversation
from persona_lens.conversations.limits import ReadLimits
from persona_lens.errors import ChatTemplateError, InvalidArgumentError
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.engine.requests import ResidualMeans, SampledResponse, SampleRequest, Sampling, decode_part
from persona_lens.models.engine.sampling import sample_recorded_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import EncodedConversation, Message, encode_conversation
from persona_lens.models.text.spans import Part, Thought, TokenSpans
from persona_lens.models.text.thoughts import find_markers
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.progress_bars import Advance, count_nothing

_LARGEST = torch.finfo(torch.float32).max
Turn: TypeAlias = Literal["first", "last", "all"]


@checked
@dataclass(frozen=True)
class ScreenSettings:
    """How conversations are screened.

    Args:
        turn: Which answer of a longer conversation counts: the ``first``, or the ``last`` with all that went before; or
            ``all``: each is scored after all that went before it, and on each trait the row is as its highest ΔP is, so
            that one bad answer among good ones shows. A row with an answer that cannot be scored is a bad row.
        max_prompt_tokens: Longer prompts are listed as bad rows; the paper's limit is 512.
        max_response_tokens: Both responses end here at the latest, as projections drift with length: the given one is
            projected up to here, and counted as cut if it has more; the model's own is sampled up to here.
        batch_size: Rows sampled at once.
        base: What the response is compared with: the model's own greedy response (``sampled``), or the prompt's last
            token (``last_prompt``), the paper's approximation that samples nothing (appendix I).
        limits: What a file of conversations may ask of its reader.
        part: Which part of a response is projected, where the model thinks: the ``answer``, the ``thought``, or both
            with the markers around them (``response``).
        max_thought_tokens: Tokens that a thought may take besides ``max_response_tokens``, where the answer is
            projected: a given thought that is longer is listed as a bad row, the model's own is counted as unfinished.
    """

    turn: Turn = "first"
    base: Literal["sampled", "last_prompt"] = "sampled"
    max_prompt_tokens: int = 512
    max_response_tokens: int = 64
    batch_size: int = 128
    limits: ReadLimits = ReadLimits()
    part: Part = "answer"
    max_thought_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_response_tokens", "batch_size", "max_thought_tokens"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError.of(name, "be at least 1", getattr(self, name))

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON-able ones; those about thoughts where they are not the usual ones."""
        usual = {"part": "answer", "max_thought_tokens": 512}  # left out, so that earlier screenings are still found
        return {k: v for k, v in asdict(self).items() if k not in usual or usual[k] != v}


@dataclass(frozen=True)
class ScoredRow:
    """A conversation with its projections on each unit vector, in residual-stream units.

    Where all answers count, a trait's projections are those of the answer with the highest ΔP on it, the texts and
    numbers those of the one that is highest on the first trait; ``is_cut`` and the like hold if they do of any answer.

    Args:
        conversation: As it was read.
        question: The last user message before the answer that counts.
        response: That answer.
        base_response: The model's own, greedy; empty if it says nothing or was not sampled. Of both, the part that is
            projected.
        n_prompt_tokens: Tokens of the prompt.
        n_response_tokens: Tokens of the response that were projected.
        is_cut: Whether the response has more.
        is_base_unfinished: Whether the model's own is a thought that does not end, and so has no answer.
        controls: Control tokens that its messages spell, such as ``<|im_end|>``; they were read as text.
        raw: By trait, the response's mean projection.
        base: By trait, what it is compared with: the base response's, None where that is empty; or the prompt's.
        prompt: By trait, the last prompt token's.
        answers: Where all answers count, each of them; else empty.
        highest: Where all answers count, by trait which of them is the highest, from 1; one without a ΔP before any
            other, as nobody knows how high it is.
    """

    conversation: Conversation
    question: str
    response: str
    base_response: str
    n_prompt_tokens: int
    n_response_tokens: int
    is_cut: bool
    is_base_unfinished: bool
    controls: tuple[str, ...]
    raw: dict[str, float]
    base: dict[str, float | None]
    prompt: dict[str, float]
    answers: tuple[ScoredRow, ...] = ()
    highest: dict[str, int] = field(default_factory=dict)

    def find_delta(self, trait: str) -> float | None:
        """Return ΔP; None without a base response."""
        base = self.base[trait]
        return None if base is None else self.raw[trait] - base


def score_rows(
    model: HookedModel,
    rows: Sequence[Conversation],
    units: Mapping[str, tuple[int, Float[Tensor, " d_model"]]],
    settings: ScreenSettings,
    advance: Advance = count_nothing,
) -> list[ScoredRow | BadRow]:
    r"""Project responses and the model's own ones, for every trait in the same passes.

    .. math:: \Delta P_i = \left(\bar a_l(x_i, y_i) - \bar a_l(x_i, y'_i)\right) \cdot v_l / \lVert v_l \rVert

    The model's response :math:`y'` is greedy and sampled once; its residual stream is pooled while it is sampled. All
    layers are pooled, so another trait costs one more product a row.

    Args:
        model: HookedTransformer or TransformerBridge, as it is.
        rows: Conversations.
        units: By trait, a zero-based block index and the unit direction there.
        settings: How.
        advance: Called with 1 for every row, when most of its work is done.

    Returns:
        One entry a row, in order; as bad rows, prompts that are too long or cannot be rendered, and projections that
        are not finite.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 6.1.
    """
    if settings.turn != "all":
        return _score_turn(model, rows, units, settings, advance)
    # All first answers, then all second ones: the first are computed as they are where they alone count, to the bit.
    # A row's further answers are left where one cannot be scored: their prompts hold it, and are longer.
    ends = [[at + 1 for at, message in enumerate(row.messages) if message["role"] == "assistant"] for row in rows]
    found: list[list[ScoredRow | BadRow]] = [[] for _ in rows]
    going, turn = list(range(len(rows))), 0
    while going:
        parts = [replace(rows[at], messages=rows[at].messages[: ends[at][turn]]) for at in going]
        turn += 1
        n_last = sum(len(ends[at]) == turn for at in going)
        count = _count_up_to(advance, n_last)
        for at, one in zip(going, _score_turn(model, parts, units, replace(settings, turn="last"), count), strict=True):
            found[at].append(one)
        still = [at for at in going if len(ends[at]) > turn and isinstance(found[at][-1], ScoredRow)]
        advance(len(going) - n_last - len(still))
        going = still
    return [_join_answers(row, one, len(end)) for row, one, end in zip(rows, found, ends, strict=True)]


def _count_up_to(advance: Advance, n_rows: int) -> Advance:
    """Return what passes on so many rows and no more."""
    left = n_rows

    def count(n: int) -> None:
        nonlocal left
        passed = min(n, left)
        left -= passed
        advance(passed)

    return count


def _join_answers(row: Conversation, answers: Sequence[ScoredRow | BadRow], n_answers: int) -> ScoredRow | BadRow:
    """Return a row as its highest answers are; a bad row if one of them could not be scored."""
    scored = tuple(one for one in answers if isinstance(one, ScoredRow))
    if isinstance(bad := answers[-1], BadRow):
        return bad if n_answers == 1 else replace(bad, detail=f"answer {len(answers)} of {n_answers}: {bad.detail}")
    highest = {}
    for trait in scored[0].raw:
        deltas = [math.inf if (delta := one.find_delta(trait)) is None else delta for one in scored]
        highest[trait] = deltas.index(max(deltas))
    return replace(
        scored[next(iter(highest.values()))],
        conversation=row,
        is_cut=any(one.is_cut for one in scored),
        is_base_unfinished=any(one.is_base_unfinished for one in scored),
        controls=tuple(dict.fromkeys(control for one in scored for control in one.controls)),
        raw={trait: scored[at].raw[trait] for trait, at in highest.items()},
        base={trait: scored[at].base[trait] for trait, at in highest.items()},
        prompt={trait: scored[at].prompt[trait] for trait, at in highest.items()},
        answers=scored,
        highest={trait: at + 1 for trait, at in highest.items()},
    )


def _score_turn(
    model: HookedModel,
    rows: Sequence[Conversation],
    units: Mapping[str, tuple[int, Float[Tensor, " d_model"]]],
    settings: ScreenSettings,
    advance: Advance,
) -> list[ScoredRow | BadRow]:
    """Score one answer of each row."""
    encoded: dict[int, EncodedConversation] = {}
    found: list[ScoredRow | BadRow | None] = [None] * len(rows)
    for index, row in enumerate(rows):
        one = encode_row(model, row, settings)
        if isinstance(one, BadRow):
            found[index] = one
        else:
            encoded[index] = one
    advance(len(rows) - len(encoded))
    # Prompts of like length are computed side by side: less padding.
    order = sorted(encoded, key=lambda index: encoded[index].response_start)
    samples = settings.base == "sampled"
    own: dict[int, SampledResponse] = {}
    if samples:
        for at, response in _sample_own(model, [encoded[index] for index in order], settings):
            own[at] = response
            advance(1)
    spans = [cut_row(encoded[index], settings) for index in order]
    given: dict[int, ResidualMeans] = {}
    for at, means in pool_residual_stream(model, spans, part=settings.part):
        given[at] = means
        if not samples:
            advance(1)
    for at, index in enumerate(order):
        one, row = encoded[index], rows[index]
        if samples and own[at].stop_reason == "not finite":
            where = "logits" if own[at].broken_layer is None else f"residual stream at layer {own[at].broken_layer}"
            why = f"the {where} of the model's own response at token {len(own[at].tokens)}"
            found[index] = BadRow(row.place, row.index, "not finite", why)
            continue
        messages = choose_turn(row.messages, settings.turn)
        prompt = _project(given[at].last_prompt, units)
        base: dict[str, float | None] = {**prompt} if settings.base == "last_prompt" else dict.fromkeys(units)
        text = ""
        if samples:
            text = decode_part(model.tokenizer, own[at], settings.part)
            residuals = own[at].residuals
            if residuals is not None:
                base = {**_project(residuals.response_mean, units)}
        scored = ScoredRow(
            conversation=row,
            question=messages[-2]["content"],
            response=_read_response(model, one, messages[-1], settings.part),
            base_response=text,
            n_prompt_tokens=one.response_start,
            n_response_tokens=int(spans[at].is_part(settings.part).sum()),
            is_cut=spans[at].find(settings.part)[1] < one.find(settings.part)[1],
            is_base_unfinished=samples and settings.part == "answer" and own[at].is_unfinished,
            controls=one.controls,
            raw=_project(given[at].response_mean, units),
            base=base,
            prompt=prompt,
        )
        lost = _find_lost(scored, units)
        found[index] = scored if lost is None else BadRow(row.place, row.index, "not finite", lost)
    return [one for one in found if one is not None]


def _sample_own(
    model: HookedModel, conversations: Sequence[EncodedConversation], settings: ScreenSettings
) -> Iterator[tuple[int, SampledResponse]]:
    """Let the model answer each prompt, greedily."""
    # A thought takes what the longest prompt that is allowed leaves of the context, whatever prompts lie beside it.
    room = max(0, model.cfg.n_ctx - settings.max_response_tokens - settings.max_prompt_tokens)
    can_think = settings.part == "answer" and find_markers(model.tokenizer) is not None
    sampling = Sampling(
        max_new_tokens=settings.max_response_tokens, temperature=0.0, batch_size=settings.batch_size,
        stop_tokens=stop_token_ids(model.tokenizer), pooled=settings.part,
        max_thought_tokens=min(settings.max_thought_tokens, room) if can_think else 0,
    )  # fmt: skip
    requests = [SampleRequest(one.prompt_tokens, (index,)) for index, one in enumerate(conversations)]
    return sample_recorded_stream(model, requests, sampling)


def encode_row(model: HookedModel, row: Conversation, settings: ScreenSettings) -> EncodedConversation | BadRow:
    """Encode a conversation up to the answer that counts, or say why it cannot be scored."""
    *before, answer = choose_turn(row.messages, settings.turn)
    # Whitespace around the answer could merge with the prompt's last token, so that the prompt were another one.
    bare: Message = {**answer, "content": answer["content"].strip()}
    if not bare["content"]:
        return BadRow(row.place, row.index, "empty response", repr(answer["content"])[:200])
    try:
        one = encode_conversation(model.tokenizer, [*before, bare])
    except (ChatTemplateError, InvalidArgumentError) as error:
        return BadRow(row.place, row.index, "not rendered by the chat template", str(error)[:200])
    n_prompt = one.response_start
    start, end = one.find(settings.part)
    room = model.cfg.n_ctx - settings.max_response_tokens
    if n_prompt > min(settings.max_prompt_tokens, room):
        return BadRow(row.place, row.index, "prompt too long", f"{n_prompt} tokens")
    if start == end:
        reason = "no thought" if settings.part == "thought" else "unfinished thought"
        return BadRow(row.place, row.index, reason, f"{one.response_end - n_prompt} tokens")
    if start - n_prompt > min(settings.max_thought_tokens, room - n_prompt):
        return BadRow(row.place, row.index, "thought too long", f"{start - n_prompt} tokens")
    return one


def cut_row(one: EncodedConversation, settings: ScreenSettings) -> TokenSpans:
    """Return a conversation up to where what is projected of its response ends."""
    start, end = one.find(settings.part)
    end = min(end, start + settings.max_response_tokens)
    thought = one.thought
    if thought is not None and (thought.answer_start is None or end <= thought.answer_start):
        thought = Thought(min(thought.start, end), min(thought.end, end))
    return TokenSpans(one.tokens[:end], one.response_start, end, thought=thought)


def _read_response(model: HookedModel, one: EncodedConversation, message: Message, part: Part) -> str:
    """Return the part of a given response that is projected, as text."""
    if one.thought is None:
        return message["content"]
    parts: tuple[Part, ...] = ("thought", "answer") if part == "response" else (part,)
    texts = [
        model.tokenizer.decode(one.tokens[slice(*one.find(one_part))], skip_special_tokens=True) for one_part in parts
    ]
    return "\n\n".join(filter(None, texts))


def choose_turn(messages: Sequence[Message], turn: Turn) -> Sequence[Message]:
    """Return the conversation up to its first answer, or, where the last or all count, up to its last.

    Example:
        >>> chat = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
        >>> len(choose_turn(chat, "first")), len(choose_turn(chat, "last"))
        (2, 4)
    """
    if turn != "first":
        return messages
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: first + 1]


def _project(
    means: Float[Tensor, "layer d_model"], units: Mapping[str, tuple[int, Float[Tensor, " d_model"]]]
) -> dict[str, float]:
    return {trait: float(torch.dot(means[layer].cpu().float(), unit)) for trait, (layer, unit) in units.items()}


def _find_lost(row: ScoredRow, units: Mapping[str, tuple[int, Float[Tensor, " d_model"]]]) -> str | None:
    """Say which projection is not finite, or beyond what single precision holds; None if all can be compared."""
    for trait, (layer, _) in units.items():
        values = (row.raw[trait], row.base[trait], row.prompt[trait], row.find_delta(trait))
        for name, value in zip(("response", "base", "prompt", "difference"), values, strict=True):
            if value is not None and not abs(value) <= _LARGEST:  # NaN too
                return f"the {name}'s projection on {trait} at layer {layer} is {value}"
    return None
