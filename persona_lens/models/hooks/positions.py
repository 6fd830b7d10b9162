"""Which tokens of a forward pass an intervention reaches, with and without a KV cache.

A hook sees a tensor ``[batch, pos, ...]`` and cannot tell whether its first position is the text's first or the
hundredth. Attention can: its pattern has a row for each new token and a column for each token seen so far. So one
more hook, on the pattern of the first block, says where the pass lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from itertools import groupby
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.applying import apply_operations, change_head
from persona_lens.models.hooks.intervention import Step
from persona_lens.models.hooks.points import HookPair
from persona_lens.models.hooks.sites import Site
from persona_lens.models.hooks.windows import Window

Positions = Literal["response", "prompt", "all"]
"""Where an intervention acts: ``response`` is the last prompt token and every generated one (the paper's
inference-time steering, section 3.2), ``prompt`` every prompt token, ``all`` both."""

SamplingPositions = Literal["response", "prompt", "all", "answer", "thought"]
"""Where an intervention acts while responses are sampled: beside those, the tokens of the response that the ``answer``
of a model that thinks is drawn from, from the last one of the marker that closes its thought on; or those before, from
the prompt's last one on, that the ``thought`` is drawn from."""

_PATTERN = "blocks.0.attn.hook_pattern"


@dataclass
class Generation:
    """One call of ``generate`` or ``generate_stream``: the length of the prompt that it was given, once seen."""

    prompt_length: int | None = None


class TokenSelector:
    """The tokens that are meant, resolved anew in every forward pass.

    Positions are those of the tensor that the model is given, left padding included.

    Args:
        positions: ``all``; ``response``, the last prompt token and everything after it; ``prompt``; or a mask over
            the text's positions, one row a text or one for all.
        prompt_length: Number of prompt tokens, one for all rows or one each. Left out, the prompt is what ``generate``
            is given; a plain call then raises.
        windows: Those that will be asked for. They count from where the response begins, and so read
            ``prompt_length``, with ``all`` too.

    Raises:
        InvalidArgumentError: Unknown positions, a mask that is not boolean ``[batch, pos]``, a length below 1, a
            ``prompt_length`` that nothing reads, or windows of a response that the positions do not reach.
    """

    def __init__(
        self,
        positions: Positions | Bool[Tensor, "batch pos"],
        prompt_length: int | Sequence[int] | None = None,
        windows: Sequence[Window] = (),
    ) -> None:
        if isinstance(positions, Tensor):
            if positions.dtype != torch.bool or positions.ndim != 2:
                got = f"shape {tuple(positions.shape)}, {positions.dtype}"
                raise InvalidArgumentError.of("positions", "be a boolean mask [batch, pos]", got)
        elif positions not in ("response", "prompt", "all"):
            rule = "be 'response', 'prompt', 'all' or a boolean mask [batch, pos]"
            hint = ""
            if positions in ("thought", "answer"):
                hint = (
                    "A hook sees activations and no tokens, so it cannot tell where a thought ends. Where a whole "
                    f"conversation is read, give a mask: spans.draws_part({positions!r})[None]. While responses are "
                    f"sampled, Sampling(positions={positions!r}) follows their tokens."
                )
            raise InvalidArgumentError.of("positions", rule, positions, hint)
        if windows:
            check_reach_response(positions)
        if prompt_length is not None:
            lengths = [prompt_length] if isinstance(prompt_length, int) else list(prompt_length)
            if not lengths or min(lengths) < 1:
                rule = "be at least 1 in every row"
                raise InvalidArgumentError.of("prompt_length", rule, prompt_length)
            if isinstance(positions, Tensor) or (positions == "all" and not windows):
                rule = "come with positions='response' or 'prompt'"
                hint = "Leave it out: the other positions do not depend on it."
                raise InvalidArgumentError.of("prompt_length", rule, prompt_length, hint)
        self.positions = positions
        self.prompt_length = prompt_length
        self.windows = tuple(windows)
        self._generation: Generation | None = None
        self._n_new = self._n_before = 0

    def hook_pairs(self) -> list[HookPair]:
        """Return the hook that follows the KV cache; none is needed where every token is meant."""
        if isinstance(self.positions, str) and self.positions == "all" and not self.windows:
            return []
        return [(_PATTERN, self._observe)]

    def _observe(self, pattern: Float[Tensor, "batch head pos key"], hook: object) -> None:
        self._n_new, n_keys = pattern.shape[-2:]
        self._n_before = n_keys - self._n_new
        if self._generation is not None and self._generation.prompt_length is None:
            self._generation.prompt_length = n_keys

    def select(
        self, n_rows: int, n_pos: int, device: torch.device, window: Window | None = None
    ) -> Bool[Tensor, "row pos"] | None:
        """Return which tokens of the present pass are meant; None for all of them.

        Args:
            n_rows: Rows of the pass.
            n_pos: Its positions.
            device: Of the answer.
            window: Of the tokens meant, those of the response that are in it.

        Raises:
            InvalidArgumentError: The mask does not cover the pass, or nothing says where the prompt ends.
        """
        if isinstance(self.positions, str) and self.positions == "all" and window is None:
            return None
        if n_pos != self._n_new:
            rule = "be 'all' where a forward pass does not run through block 0"
            got = f"{n_pos} positions at the hook, {self._n_new} in block 0's attention"
            raise InvalidArgumentError.of("positions", rule, got)
        end = self._n_before + n_pos
        if isinstance(self.positions, Tensor):
            if self.positions.shape[1] < end or self.positions.shape[0] not in (1, n_rows):
                rule = f"cover {n_rows} rows (or be one row) and at least {end} positions"
                hint = "When generating, make the mask as wide as prompt and response together."
                raise InvalidArgumentError.of("positions", rule, tuple(self.positions.shape), hint)
            return self.positions[:, self._n_before : end].to(device).expand(n_rows, -1)
        absolute = torch.arange(self._n_before, end, device=device)
        response_tokens = absolute - (self._lengths(n_rows, device)[:, None] - 1)
        if window is not None:
            return window.select(response_tokens)
        return response_tokens >= 0 if self.positions == "response" else response_tokens <= 0

    def _lengths(self, n_rows: int, device: torch.device) -> Tensor:
        known = self.prompt_length
        if known is None and self._generation is not None:
            known = self._generation.prompt_length
        if known is None:
            windowed = " and a window" if self.windows else ""
            rule = f"be given for positions={self.positions!r}{windowed} in a plain call"
            hint = "Only around model.generate is the prompt known. Give the number of prompt tokens."
            raise InvalidArgumentError.of("prompt_length", rule, None, hint)
        lengths = torch.tensor([known] * n_rows if isinstance(known, int) else list(known), device=device)
        if len(lengths) != n_rows:
            rule = f"be one number, or {n_rows}, one a row"
            raise InvalidArgumentError.of("prompt_length", rule, known)
        return lengths

    @contextmanager
    def generation(self, begun: Generation) -> Iterator[None]:
        """Take what the model was given first, in a generation that may be read in pieces, as the prompt."""
        outer, self._generation = self._generation, begun
        try:
            yield
        finally:
            self._generation = outer


def check_reach_response(positions: SamplingPositions | Tensor) -> None:
    """Refuse positions that a window over the response's tokens does not go with.

    Raises:
        InvalidArgumentError: The prompt alone, or a mask, which says itself which tokens are meant.
    """
    if isinstance(positions, Tensor) or positions == "prompt":
        got = "a mask" if isinstance(positions, Tensor) else positions
        hint = "Leave out `.during(...)`, or act on the response."
        raise InvalidArgumentError.of("positions", "be 'response' or 'all' with a window of the response", got, hint)


class PositionedHook:
    """A TransformerLens hook function that applies operations at some positions.

    Args:
        site: The layer or head.
        steps: Of that site, applied in this order, each during its window.
        positions: At which tokens.
    """

    def __init__(self, site: Site, steps: Sequence[Step], positions: TokenSelector) -> None:
        self.site = site
        self.steps = tuple(steps)
        self.operations = tuple(step.operation for step in steps)
        self.positions = positions
        self._parts = [
            (window, tuple(step.operation for step in alike))
            for window, alike in groupby(self.steps, key=lambda step: step.window)
        ]

    def __call__(self, activations: Float[Tensor, "row pos *width"], hook: object) -> Float[Tensor, "row pos *width"]:
        """Return the residual stream, or the heads' outputs, with the operations applied."""
        for window, operations in self._parts:
            chosen = self.positions.select(activations.shape[0], activations.shape[1], activations.device, window)
            apply = partial(apply_operations, operations=operations, is_chosen=chosen)
            head = self.site.head
            activations = apply(activations) if head is None else change_head(activations, head, apply)
        return activations

    def reach(self, n_rows: int, n_pos: int, device: torch.device) -> Bool[Tensor, "row pos"]:
        """Return which tokens of the present pass it acts at."""
        chosen = [self.positions.select(n_rows, n_pos, device, window) for window, _ in self._parts]
        everywhere = torch.ones(n_rows, n_pos, dtype=torch.bool, device=device)
        return reduce(torch.logical_or, [everywhere if one is None else one for one in chosen])

    def __repr__(self) -> str:
        return f"PositionedHook({self.site}: {', '.join(map(repr, self.steps))})"


class _Following:
    """The selectors that follow a model's ``generate``, and what of the model's own was put aside for them."""

    def __init__(self) -> None:
        self.selectors: list[TokenSelector] = []
        self.aside: dict[str, Any] = {}


_FOLLOWING: WeakKeyDictionary[HookedModel, _Following] = WeakKeyDictionary()


@contextmanager
def following_generate(model: HookedModel, positions: Sequence[TokenSelector]) -> Iterator[None]:
    """Let positions know, for the length of the block, when ``generate`` or ``generate_stream`` of the model runs.

    Such blocks may end in any order: the last one to end puts the model's own functions back.
    """
    following = _FOLLOWING.setdefault(model, _Following())
    if positions and not following.selectors:
        shadows = _make_shadows(model, following.selectors)
        following.aside = {name: model.__dict__[name] for name in shadows if name in model.__dict__}
        model.__dict__.update(shadows)
    following.selectors += positions
    try:
        yield
    finally:
        for one in positions:
            following.selectors.remove(one)
        if positions and not following.selectors:
            for name in ("generate", "generate_stream"):
                model.__dict__.pop(name, None)
            model.__dict__.update(following.aside)


def _make_shadows(model: HookedModel, selectors: Sequence[TokenSelector]) -> dict[str, Any]:
    """Return functions for the place of the model's own, which do the same and let the selectors of the time know."""
    whole, stepwise = model.generate, model.generate_stream

    @contextmanager
    def resumed(begun: Sequence[tuple[TokenSelector, Generation]]) -> Iterator[None]:
        with ExitStack() as stack:
            for one, generation in begun:
                stack.enter_context(one.generation(generation))
            yield

    # Arguments are passed on unread: the signatures stay TransformerLens' own.
    def generate(*args: Any, **kwargs: Any) -> Any:
        with resumed([(one, Generation()) for one in selectors]):
            return whole(*args, **kwargs)

    def generate_stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        begun = [(one, Generation()) for one in selectors]
        with closing(stepwise(*args, **kwargs)) as steps:
            while True:
                with resumed(begun):  # between two steps the model may do other things
                    step = next(steps, None)
                if step is None:
                    return
                yield step

    return {"generate": generate, "generate_stream": generate_stream}
