"""Prompts computed once and shared by every row that starts with them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.models.engine.attention import SlotCache, round_up
from persona_lens.models.engine.decoding import Decoder
from persona_lens.models.text.padding import pad_right

K = TypeVar("K")
V = TypeVar("V")

# Right padding of prompts to this length keeps the shapes of the matrix products, and so their rounding, the same
# whatever the other prompts of the batch.
_PROMPT_LENGTH_MULTIPLE = 16


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of all of a prompt but its last token."""

    keys: Float[Tensor, "layer kv_head pos d_head"]
    values: Float[Tensor, "layer kv_head pos d_head"]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.keys.shape[2]

    def write(self, cache: SlotCache, slot: int) -> None:
        """Put the prefix at the start of a slot."""
        cache.write_prefix(slot, self.keys, self.values)


class PromptMemory:
    """What was computed of some prompts, for longer prompts that begin with them: a conversation's next turn.

    Args:
        n_ctx: The model's context.
    """

    def __init__(self, n_ctx: int) -> None:
        self.n_ctx = n_ctx
        self._known: dict[tuple[int, ...], Prefix] = {}

    def find(self, prompt: tuple[int, ...]) -> Prefix | None:
        """Return the longest prefix that a prompt begins with and goes beyond; None where none is known."""
        shorter = [tokens for tokens in self._known if len(tokens) < len(prompt) - 1]
        fitting = [tokens for tokens in shorter if prompt[: len(tokens)] == tokens]
        return self._known[max(fitting, key=len)] if fitting else None

    def replace(self, prefixes: Mapping[tuple[int, ...], Prefix]) -> None:
        """Forget all, and keep the prefixes of some prompts, by the prompt's tokens."""
        self._known = {prompt[:-1]: prefix for prompt, prefix in prefixes.items() if prefix.length}


def compute_prefixes(
    decoder: Decoder, prompts: Sequence[tuple[int, ...]], memory: PromptMemory | None = None
) -> list[Prefix]:
    """Run the prompts, each without its last token, as one right-padded batch.

    The last token is left to the rows: it is the first position that an intervention on the response reaches, so
    rows with different interventions share everything before it.

    Args:
        decoder: The model.
        prompts: Token ids; a prompt of one token has an empty prefix.
        memory: What is known of prompts that these begin with, and so is not run again.

    Returns:
        One prefix a prompt.
    """
    known = [None if memory is None else memory.find(prompt) for prompt in prompts]
    starts, n_pos = _measure_rest(prompts, known)
    # A row is padded to the longest rest of all, which from a late start may lead past the model's last position.
    while memory is not None and (late := [i for i, start in enumerate(starts) if 0 < start > memory.n_ctx - n_pos]):
        known = [None if i in late else one for i, one in enumerate(known)]
        starts, n_pos = _measure_rest(prompts, known)
    rest = [prompt[start:-1] for prompt, start in zip(prompts, starts, strict=True)]
    padded = pad_right(rest, multiple=_PROMPT_LENGTH_MULTIPLE)
    cache = decoder.new_cache(len(prompts), max(starts) + n_pos)
    for row, prefix in enumerate(known):
        if prefix is not None:
            prefix.write(cache, row)
    device = cache.keys.device
    decoder.extend(padded.tokens.to(device), torch.tensor(starts, dtype=torch.long, device=device), cache)
    return [Prefix(*cache.read_prefix(row, len(prompt) - 1)) for row, prompt in enumerate(prompts)]


def _measure_rest(prompts: Sequence[tuple[int, ...]], known: Sequence[Prefix | None]) -> tuple[list[int], int]:
    """Return where each row goes on from what is known of it, and the length that all rows are padded to."""
    starts = [0 if one is None else one.length for one in known]
    longest = max(len(prompt) - 1 - start for prompt, start in zip(prompts, starts, strict=True))
    return starts, round_up(max(1, longest), _PROMPT_LENGTH_MULTIPLE)


class RecentlyUsed(OrderedDict[K, V]):
    """A dictionary that forgets the entries least recently read beyond ``capacity``."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def read(self, key: K) -> V:
        """Return an entry and mark it as just used."""
        self.move_to_end(key)
        return self[key]

    def put(self, key: K, value: V) -> None:
        """Add an entry and forget the oldest beyond capacity."""
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.capacity:
            self.popitem(last=False)
