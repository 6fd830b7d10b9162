"""Ways to break a tiny model on purpose, each with the check that must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.hook_points import HookPoint

from tests.tiny import CHATML

DROPPING_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
_LATER_TURNS_LOSE_IT = (
    "{% set several = messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}"
    + CHATML.replace("{% for m in messages %}", "{% for m in messages if not (several and m['role'] == 'system') %}")
)


@dataclass(frozen=True)
class Break:
    """Something broken.

    Args:
        what: In words.
        check: The name of the check that must find it.
        do: Breaks a model in place.
        said: What the finding must say.
    """

    what: str
    check: str
    do: Callable[[Any], None]
    said: str


def set_template(template: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.tokenizer.chat_template = template

    return change


def end_turns_by_an_unknown_token(model: Any) -> None:
    # A token that is in the vocabulary, and is the end of no turn that is known.
    model.tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|im_start|>")


def cut_texts(model: Any) -> None:
    """A tokenizer that takes no more than a number of tokens, in silence, as files with a truncation do."""
    call = type(model.tokenizer).__call__

    class Cutting(type(model.tokenizer)):  # type: ignore[misc]
        def __call__(self, text, **options):
            return call(self, text, truncation=True, max_length=240, **options)

    model.tokenizer.__class__ = Cutting


def lose_offsets(model: Any) -> None:
    """A tokenizer whose offsets are one character late."""
    call = type(model.tokenizer).__call__

    class Late(type(model.tokenizer)):  # type: ignore[misc]
        def __call__(self, text, **options):
            found = call(self, text, **options)
            if "offset_mapping" in found:
                found["offset_mapping"] = [(a + 1, b + 1) for a, b in found["offset_mapping"]]
            return found

    model.tokenizer.__class__ = Late


def claim_context(model: Any) -> None:
    model.cfg.n_ctx *= 2


def change_weight(model: Any) -> None:
    with torch.no_grad():
        model.blocks[1].mlp.W_out.mul_(1.05)


def put_nan(model: Any) -> None:
    with torch.no_grad():
        model.blocks[2].attn.W_O[0, 0, 0] = torch.nan


def pass_hook_by(model: Any) -> None:
    """The block calls another hook point than the one that the model knows by name."""
    model.blocks[1].hook_resid_post = HookPoint()


def ignore_mask(model: Any) -> None:
    forward = model.forward
    model.forward = lambda tokens, attention_mask=None, **options: forward(tokens, **options)


def turn_cached_positions(model: Any) -> None:
    """Rotations the wrong way, in what is computed anew for the cache alone."""
    attn = model.blocks[0].attn
    compute = attn.calculate_sin_cos_rotary

    def compute_backwards(*given, **options):
        sin, cos = compute(*given, **options)
        return -sin, cos

    attn.calculate_sin_cos_rotary = compute_backwards


def lose_changes(model: Any) -> None:
    """A hook point that shows its value to hooks, and goes on with what it was."""
    point = model.hook_dict["blocks.1.hook_resid_post"]
    call = type(point).__call__

    class Deaf(type(point)):  # type: ignore[misc]
        def __call__(self, value):
            call(self, value)
            return value

    point.__class__ = Deaf


BREAKS = (
    Break("the template drops the system message", "system prompt", set_template(DROPPING_SYSTEM), "in silence"),
    Break("it does so in several turns alone", "system prompt", set_template(_LATER_TURNS_LOSE_IT), "several turns"),
    Break("no chat template", "chat template", set_template(""), "none"),
    Break("BOS written twice", "BOS", set_template("{{ bos_token }}{{ bos_token }}" + CHATML), "2 times"),
    Break("turns end with a token that is no stop token", "stop tokens", end_turns_by_an_unknown_token, "<|im_start|>"),
    Break("the tokenizer's offsets are wrong", "spans", lose_offsets, "decode to"),
    Break("the tokenizer cuts long texts", "context length", cut_texts, "cut to"),
    Break("the context is stated twice as long", "context length", claim_context, "512"),
    Break("a hook point that is passed by", "hooks", pass_hook_by, "blocks.1.hook_resid_post never fired"),
    Break("a weight that is NaN", "finite", put_nan, "blocks.2.attn.W_O"),
    Break("a forward pass that ignores the mask", "padding", ignore_mask, "padded left"),
    Break("positions that are wrong with a cache", "cache", turn_cached_positions, "differs"),
    Break("a weight that is not Hugging Face's", "layers", change_weight, "at layer 1, by"),
    Break("a hook point that loses changes", "steering", lose_changes, "Layer 2 does not read"),
)  # fmt: skip
