"""One answer, token by token, by TransformerLens' own generation, so that every hook on the model takes effect."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import NonFiniteError
from persona_lens.models.engine.finite import OVERFLOW_HINT
from persona_lens.models.engine.requests import SampledResponse, Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.sharing import drawing
from persona_lens.models.text.thoughts import open_format
from persona_lens.models.text.tokens import stop_token_ids


def generate_one_by_one(
    model: HookedModel, prompt: Sequence[int], sampling: Sampling, n_tokens: int
) -> Generator[int, None, None]:
    """Draw a response's tokens one by one, past any stop token; what ends a response is for the caller to see.

    A pass of the model is run for each, no further than the latest: the first over the prompt, every other over the
    token before. Between two tokens torch's random numbers and gradients are the caller's own.

    Args:
        model: HookedTransformer or TransformerBridge.
        prompt: Token ids.
        sampling: Temperature, ``top_p`` and seed.
        n_tokens: Most tokens drawn.

    Raises:
        NonFiniteError: Logits that overflow, as under too strong a steering.
        ModelBusyError: The model does something else.
    """
    n_drawn = 0

    def check_logits(logits: Float[Tensor, "row pos vocab"], hook: object) -> None:
        if not bool(logits[:, -1].max(dim=-1).values.isfinite().all()):
            rule, got = "be answered in finite numbers", f"infinity or NaN in the logits of response token {n_drawn}"
            raise NonFiniteError.of("question", rule, got, OVERFLOW_HINT)

    draws = _Draws(sampling.seed, torch.device(model.cfg.device))
    with attached(model, [("unembed.hook_out", check_logits)]):
        steps = model.generate_stream(
            torch.tensor([prompt], device=model.cfg.device),
            max_new_tokens=n_tokens,
            max_tokens_per_yield=1,
            stop_at_eos=False,  # it knows one stop token; a template may have several
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature,
            top_p=None if sampling.top_p == 1 else sampling.top_p,
            verbose=False,
        )
        with closing(steps):
            while True:
                with draws.resumed(), torch.no_grad():
                    step = next(steps, None)
                if step is None:
                    return
                n_drawn += 1
                yield int(step[0, -1])  # the first step repeats the prompt before it


class _Draws:
    """Random numbers of their own, drawn with torch's global generators, which are left as they were.

    Args:
        seed: Of the first.
        device: Of the model.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        module = None if device.type == "cpu" else torch.get_device_module(device.type)
        has_generator = all(hasattr(module, name) for name in ("get_rng_state", "set_rng_state", "manual_seed"))
        self._module: Any = module if has_generator else None
        self._states: list[Tensor] = []

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Go on drawing where the last such block ended."""
        with drawing():
            outside = self._read()
            try:
                if self._states:
                    self._write(self._states)
                else:
                    self._begin()
                yield
                self._states = self._read()
            finally:
                self._write(outside)

    def _begin(self) -> None:
        # Not torch.manual_seed, which would seed the devices that were not put aside too.
        torch.default_generator.manual_seed(self._seed)
        if self._module is not None:
            several = hasattr(self._module, "device")
            with self._module.device(self._device) if several else nullcontext():
                self._module.manual_seed(self._seed)

    def _read(self) -> list[Tensor]:
        states = [torch.default_generator.get_state()]
        return states if self._module is None else [*states, self._module.get_rng_state(self._device)]

    def _write(self, states: Sequence[Tensor]) -> None:
        torch.default_generator.set_state(states[0])
        if self._module is not None:
            self._module.set_rng_state(states[1], self._device)


class GrowingAnswer:
    """What is known of a response while its tokens come.

    Args:
        tokenizer: The model's.
        prompt: Token ids of the prompt.
        sampling: How long it may be, and what stops it.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], sampling: Sampling) -> None:
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._n_shown = 0
        form = open_format(tokenizer)
        self.reader = None if form is None else form.begin(prompt)
        self.stops = sampling.stop_tokens or stop_token_ids(tokenizer)
        self.tokens: list[int] = []

    def add(self, token: int) -> None:
        """Take the next token, which is no stop."""
        self.tokens.append(token)
        if self.reader is not None:
            self.reader.feed(token)

    @property
    def is_full(self) -> bool:
        """Whether it has as many tokens as it may."""
        sampling = self._sampling
        if len(self.tokens) >= sampling.max_tokens:
            return True
        return self.reader is not None and self.reader.count(sampling.max_thought_tokens) >= sampling.max_new_tokens

    def grow(self) -> str:
        """Return the text that came since the last call, in whole characters."""
        text = self._decode()
        # A character may take several tokens; an unfinished one decodes to the replacement character.
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._show(text)

    def finish(self) -> str:
        """Return all text that has not been returned, a character that stays unfinished too."""
        return self._show(self._decode())

    @property
    def response(self) -> SampledResponse:
        """The response as it is now."""
        thought = None if self.reader is None else self.reader.thought
        return SampledResponse(tuple(self.tokens), "stop", thought=thought)

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text

    def _show(self, text: str) -> str:
        new = text[self._n_shown :]
        self._n_shown = max(self._n_shown, len(text))
        return new
