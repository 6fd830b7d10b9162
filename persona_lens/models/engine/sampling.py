"""Batched sampling from a model, row by row: each row has its own prompt, seed and interventions.

Rows stream through a fixed number of slots: a finished row leaves, the next one takes its slot, so batches stay
full whatever the responses' lengths. A prompt is computed once for all the rows that start with it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.engine.acting import BEFORE_RESPONSE, act_at, check_thoughts
from persona_lens.models.engine.attention import round_up
from persona_lens.models.engine.decoding import Decoder, open_decoder
from persona_lens.models.engine.drawing import NOT_FINITE, draw_tokens
from persona_lens.models.engine.finite import find_broken_layer
from persona_lens.models.engine.prefixes import Prefix, PromptMemory, RecentlyUsed, compute_prefixes
from persona_lens.models.engine.requests import ResidualMeans, SampledResponse, SampleRequest, Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.applying import RowInterventions
from persona_lens.models.hooks.intervention import Intervention, Step, check_interventions
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.positions import check_reach_response
from persona_lens.models.hooks.recording import ResidualRecorder
from persona_lens.models.hooks.sharing import reading_one_by_one
from persona_lens.models.text.spans import Thought, check_token_ids, find_part
from persona_lens.models.text.thoughts import ThoughtFormat, ThoughtReader, open_format

# Batches are filled up to a multiple of this with idle rows: matrix kernels round differently for odd heights.
_ROW_MULTIPLE = 16
# Prompts are computed this many at a time; a prompt alone makes poor use of the machine.
_PROMPTS_AT_ONCE = 16


@checked
def sample_stream(
    model: HookedModel, requests: Sequence[SampleRequest], sampling: Sampling
) -> Iterator[tuple[int, SampledResponse]]:
    """Sample a response to each request, yielding ``(index, response)`` as rows finish.

    A row's tokens depend on its prompt, seed and interventions, not on the rows beside it: in float32 as tested, in
    bfloat16 up to rounding: a few matrix kernels round a row differently in batches of another height. The same
    requests in the same order give the same bytes. While the iterator is half read the model refuses all else, and
    gradients are off: read it to its end first, or make a list of it.

    Args:
        model: HookedTransformer or TransformerBridge.
        requests: What to sample.
        sampling: How.

    Yields:
        The request's index and its response, in order of completion.

    Raises:
        ContextLengthError: A prompt that leaves no room for ``max_new_tokens``.
        InvalidArgumentError: An empty prompt, an intervention that does not fit the model, or one with a window of the
            response where ``positions`` is ``prompt``.
        HooksPresentError: Hooks inside attention, which sampling would pass by.
        ModelBusyError: The model does something else.
    """
    yield from _stream(model, requests, sampling, None)


@checked
def sample_recorded_stream(
    model: HookedModel, requests: Sequence[SampleRequest], sampling: Sampling
) -> Iterator[tuple[int, SampledResponse]]:
    """Do as :func:`sample_stream`, and give each response its pooled residual stream.

    The residual stream is pooled inside the hooks while the tokens are sampled: no second pass, and memory does not
    grow with the number or the length of the responses.
    """
    yield from _stream(model, requests, sampling, ResidualRecorder(model.cfg.n_layers))


def sample_turn(
    model: HookedModel, requests: Sequence[SampleRequest], sampling: Sampling, memory: PromptMemory
) -> Iterator[tuple[int, SampledResponse]]:
    """Do as :func:`sample_stream` for one turn of some conversations, whose earlier turns are not computed again.

    Args:
        model: HookedTransformer or TransformerBridge.
        requests: What to sample.
        sampling: How. Where interventions reach into prompts, nothing is taken from the memory.
        memory: What is known of the prompts of the turn before; afterwards, of these.
    """
    yield from _stream(model, requests, sampling, None, memory)


def _stream(
    model: HookedModel,
    requests: Sequence[SampleRequest],
    sampling: Sampling,
    recorder: ResidualRecorder | None,
    memory: PromptMemory | None = None,
) -> Iterator[tuple[int, SampledResponse]]:
    _check_requests(model, requests, sampling)
    if not requests:
        return
    form = open_format(model.tokenizer)
    check_thoughts(form, sampling)
    interventions = RowInterventions(site for request in requests for site in request.intervention.sites)
    pairs = interventions.hook_pairs() + (recorder.hook_pairs() if recorder else [])
    with open_decoder(model) as decoder, attached(model, pairs):
        sampler = _Sampler(model, decoder, requests, sampling, interventions, recorder, form, memory)
        yield from reading_one_by_one(model, sampler.run())
        if memory is not None and not sampler.reaches_prompt:
            memory.replace({request.prompt: kept.prefix for request in requests if (kept := sampler.find(request))})


def _check_requests(model: HookedModel, requests: Sequence[SampleRequest], sampling: Sampling) -> None:
    limit = model.cfg.n_ctx - sampling.max_tokens
    for index, request in enumerate(requests):
        if not request.prompt:
            raise InvalidArgumentError.of(f"requests[{index}].prompt", "hold at least one token", ())
        check_token_ids(f"requests[{index}].prompt", request.prompt, model.cfg.d_vocab)
        if len(request.prompt) > limit:
            rule = f"be at most {limit} tokens long"
            hint = (
                f"The model's context is {model.cfg.n_ctx} tokens, of which max_new_tokens={sampling.max_tokens} "
                "are kept for the response. Shorten the prompt or ask for fewer."
            )
            raise ContextLengthError.of(f"requests[{index}].prompt", rule, len(request.prompt), hint)
    if any(request.intervention.has_windows for request in requests):
        check_reach_response(sampling.positions)
    check_interventions(model, (request.intervention for request in requests))


@dataclass(frozen=True, eq=False)
class _StoredPrefix:
    prefix: Prefix
    residual_sum: Tensor | None  # [layer, d_model] over the prefix's tokens


class _Row:
    """A request under way in a slot."""

    def __init__(
        self,
        index: int,
        request: SampleRequest,
        stored: _StoredPrefix,
        sampling: Sampling,
        reader: ThoughtReader | None,
    ) -> None:
        self.index = index
        self.request = request
        self.stored = stored
        self.tokens: list[int] = []
        self.next_input = request.prompt[-1]
        self.position = len(request.prompt) - 1
        self.has_windows = request.intervention.has_windows
        # All of a row's draws come from its own seed, so its neighbours cannot shift them.
        self.draws = np.random.default_rng(request.seed).random(sampling.max_tokens)
        self.reader = reader
        self.n_free = sampling.max_thought_tokens
        self.held: list[Tensor] = []  # of the latest tokens, while it is not certain what they are

    def add(self, token: int) -> None:
        self.tokens.append(token)
        self.next_input = token
        if self.reader is not None:
            self.reader.feed(token)

    @property
    def thought(self) -> Thought | None:
        return None if self.reader is None else self.reader.thought

    @property
    def n_counted(self) -> int:
        """Tokens that count against the most that a response may have."""
        return len(self.tokens) if self.reader is None else self.reader.count(self.n_free)


class _Sampler:
    """Streams rows through the slots of one cache."""

    def __init__(
        self,
        model: HookedModel,
        decoder: Decoder,
        requests: Sequence[SampleRequest],
        sampling: Sampling,
        interventions: RowInterventions,
        recorder: ResidualRecorder | None,
        form: ThoughtFormat | None,
        memory: PromptMemory | None = None,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.requests = requests
        self.sampling = sampling
        self.interventions = interventions
        self.assigned: list[tuple[Step, ...]] = []  # to each row of the latest pass
        self.recorder = recorder
        self.form = form
        self.reaches_prompt = sampling.positions in ("prompt", "all")
        self.memory = None if self.reaches_prompt else memory
        n_slots = round_up(min(sampling.batch_size, len(requests)), _ROW_MULTIPLE)
        longest = max(len(request.prompt) for request in requests)
        self.cache = decoder.new_cache(n_slots, longest + sampling.max_tokens)
        self.device = self.cache.keys.device
        self.rows: list[_Row] = []  # row i lies in slot i
        self.capacity = min(sampling.batch_size, len(requests))
        self.waiting = 0  # index of the next request to admit
        n_kept = 2 * self.capacity + _PROMPTS_AT_ONCE
        self.prefixes: RecentlyUsed[tuple[object, ...], _StoredPrefix] = RecentlyUsed(n_kept)
        self.last_prompt = torch.zeros(0)  # [layer, slot, d_model] once something is recorded
        self.response_sum = torch.zeros(0)

    def run(self) -> Generator[tuple[int, SampledResponse], None, None]:
        while self.rows or self.waiting < len(self.requests):
            self._admit()
            logits = self._step()
            yield from self._advance(logits)

    # Prompts ---------------------------------------------------------------------------------------------------

    def _prefix_key(self, request: SampleRequest) -> tuple[object, ...]:
        """Rows share a prefix if the prompt is the same and no intervention reaches into it."""
        if not self.reaches_prompt:
            return (request.prompt,)
        reaching = request.intervention.at_token(BEFORE_RESPONSE).steps
        return (request.prompt, *((step.site, id(step.operation)) for step in reaching))

    def find(self, request: SampleRequest) -> _StoredPrefix | None:
        """Return what is still known of a request's prompt."""
        return self.prefixes.get(self._prefix_key(request))

    def _admit(self) -> None:
        admitted = self.requests[self.waiting : self.waiting + self.capacity - len(self.rows)]
        if not admitted:
            return
        for request in admitted:
            key = self._prefix_key(request)
            if key not in self.prefixes:
                self._compute_prefixes_from(self.waiting)
            reader = None if self.form is None else self.form.begin(request.prompt)
            row = _Row(self.waiting, request, self.prefixes.read(key), self.sampling, reader)
            row.stored.prefix.write(self.cache, len(self.rows))
            self.rows.append(row)
            self.waiting += 1
        self._assign_interventions()

    def _compute_prefixes_from(self, index: int) -> None:
        """Compute the prefixes of the next few distinct prompts, from a request on."""
        wanted: dict[tuple[object, ...], SampleRequest] = {}
        # Looking a few batches ahead is enough, and keeps the prompts found within what is remembered.
        for request in self.requests[index : index + 4 * self.capacity]:
            key = self._prefix_key(request)
            if key not in self.prefixes:
                wanted.setdefault(key, request)
            if len(wanted) == _PROMPTS_AT_ONCE:
                break
        requests = list(wanted.values())
        positions = self.sampling.positions
        self._assign([act_at(request.intervention, positions, BEFORE_RESPONSE, None) for request in requests])
        if self.recorder:
            lengths = torch.tensor([len(request.prompt) - 1 for request in requests], device=self.device)
            self.recorder.expect(lambda residual, layer: _sum_first(residual, lengths))
        prefixes = compute_prefixes(self.decoder, [request.prompt for request in requests], self.memory)
        sums = self.recorder.read() if self.recorder else None
        for i, (key, prefix) in enumerate(zip(wanted, prefixes, strict=True)):
            self.prefixes.put(key, _StoredPrefix(prefix, None if sums is None else sums[:, i].clone()))

    # Steps -----------------------------------------------------------------------------------------------------

    def _assign_interventions(self) -> None:
        self._assign([self._now(row) for row in self.rows])

    def _assign(self, rows: list[Intervention]) -> None:
        """Tell the hooks what is done to each row, where that is something else than before."""
        assigned = [one.steps for one in rows]
        if assigned != self.assigned:
            self.interventions.assign(rows, self.device)
            self.assigned = assigned

    def _now(self, row: _Row) -> Intervention:
        token = row.position - (len(row.request.prompt) - 1)
        return act_at(row.request.intervention, self.sampling.positions, token, row.reader)

    def _step(self) -> Float[Tensor, "row vocab"]:
        n_padded = round_up(len(self.rows), _ROW_MULTIPLE)
        idle = [0] * (n_padded - len(self.rows))
        tokens = torch.tensor([row.next_input for row in self.rows] + idle, device=self.device)
        starts = torch.tensor([row.position for row in self.rows] + idle, device=self.device)
        if self.recorder:
            self.recorder.expect(lambda residual, layer: residual[:, 0])
        hidden = self.decoder.extend(tokens[:, None], starts, self.cache)
        logits = self.decoder.unembed(hidden[:, 0])
        if self.recorder:
            self._record(self.recorder.read())
        return logits[: len(self.rows)]

    def _record(self, residuals: Float[Tensor, "layer row d_model"]) -> None:
        if self.response_sum.numel() == 0:
            n_layers, _, d_model = residuals.shape
            shape = (n_layers, self.cache.n_slots, d_model)
            self.response_sum = torch.zeros(shape, dtype=torch.float32, device=self.device)
            self.last_prompt = torch.zeros(shape, dtype=torch.float32, device=self.device)
        if self.form is None or self.sampling.pooled == "response":
            self.response_sum[:, : residuals.shape[1]] += residuals
        else:
            for slot, row in enumerate(self.rows):
                if row.position >= len(row.request.prompt):
                    row.held.append(residuals[:, slot].float())
                    self._settle(slot, row.reader.n_settled if row.reader else len(row.tokens))
        first = [slot for slot, row in enumerate(self.rows) if row.position == len(row.request.prompt) - 1]
        if first:
            self.last_prompt[:, first] = residuals[:, first].float()
            self.response_sum[:, first] = 0.0

    def _settle(self, slot: int, n_settled: int) -> None:
        """Add what is held of a row's tokens that are in the part that is pooled, as far as that is certain."""
        row = self.rows[slot]
        held_from = row.position - len(row.request.prompt) + 1 - len(row.held)
        start, end = find_part(self.sampling.pooled, 0, len(row.tokens), row.thought)
        while row.held and held_from < n_settled:
            residual = row.held.pop(0)
            if start <= held_from < end:
                self.response_sum[:, slot] += residual
            held_from += 1

    def _advance(self, logits: Float[Tensor, "row vocab"]) -> Iterator[tuple[int, SampledResponse]]:
        """Give each row its next token; yield and replace the rows that are done."""
        sampling = self.sampling
        # A row that already has all its tokens was run once more, only to record its last token's residual stream.
        draws = [row.draws[min(len(row.tokens), sampling.max_tokens - 1)] for row in self.rows]
        chosen = draw_tokens(logits, torch.tensor(draws), sampling.temperature, sampling.top_p).tolist()
        finished: list[int] = []
        for slot, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            full = row.n_counted >= sampling.max_new_tokens
            if token == NOT_FINITE:
                row.position += 1
                finished.append(slot)
                broken = self._find_layer(row)
                yield row.index, SampledResponse(tuple(row.tokens), "not finite", None, broken, row.thought)
                continue
            if full or token in sampling.stop_tokens:
                finished.append(slot)
                reason: Literal["stop", "length"] = "length" if full else "stop"
                means = self._means(slot)
                row.position += 1
                yield row.index, SampledResponse(tuple(row.tokens), reason, means, thought=row.thought)
                continue
            row.position += 1
            row.add(token)
            if row.n_counted >= sampling.max_new_tokens and self.recorder is None:
                finished.append(slot)
                yield row.index, SampledResponse(tuple(row.tokens), "length", thought=row.thought)
        self._vacate(finished)
        if finished or sampling.positions not in ("response", "all") or any(row.has_windows for row in self.rows):
            self._assign_interventions()

    def _find_layer(self, row: _Row) -> int | None:
        self._assign([row.request.intervention])
        layer = find_broken_layer(self.model, self.decoder, (*row.request.prompt, *row.tokens))
        self._assign_interventions()
        return layer

    def _means(self, slot: int) -> ResidualMeans | None:
        row = self.rows[slot]
        if row.stored.residual_sum is None or not row.tokens:
            return None
        self._settle(slot, len(row.tokens))  # what was waited for did not come
        start, end = find_part(self.sampling.pooled, 0, len(row.tokens), row.thought)
        if start == end:
            return None
        last = self.last_prompt[:, slot].clone()
        return ResidualMeans(
            response_mean=self.response_sum[:, slot] / (end - start),
            prompt_mean=(row.stored.residual_sum + last) / len(row.request.prompt),
            last_prompt=last,
        )

    def _vacate(self, finished: list[int]) -> None:
        """Move the last rows into the slots that fell free, so that the rows in use stay the first ones."""
        for slot in reversed(finished):
            last = len(self.rows) - 1
            if slot != last:
                moved = self.rows[last]
                self.cache.move_slot(last, slot, moved.position)
                if self.recorder:
                    self.response_sum[:, slot] = self.response_sum[:, last]
                    self.last_prompt[:, slot] = self.last_prompt[:, last]
                self.rows[slot] = moved
            self.rows.pop()


def _sum_first(
    residual: Float[Tensor, "row pos d_model"], lengths: Int[Tensor, " row"]
) -> Float[Tensor, "row d_model"]:
    """Sum each row's first ``lengths`` positions in float32."""
    inside = torch.arange(residual.shape[1], device=residual.device) < lengths[:, None]
    return residual.float().masked_fill(~inside[..., None], 0.0).sum(dim=1)
