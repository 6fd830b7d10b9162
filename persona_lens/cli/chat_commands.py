"""What one may type in a chat beside questions: lines that begin with a slash."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from persona_lens.cli.chat_state import Settings
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooks.sites import check_layer

WORDS = ("help", "layer", "system", "watch", "alarm", "drift", "new", "save", "quit")
HELP = """Write a question, and the model answers. Each token of the answer stands on a ground that is
orange where its projection on the trait's vector is above the ordinary, blue where it is below;
underlined tokens are steered. Below the answer: each trait's mean over the answer, and above how many
of the ordinary answers that were measured it is. A high reading is unusual; it does not prove that the answer is bad.

  /{trait} 1.5         steer towards a trait, by so many of its vector's lengths (below zero: away)
  /{trait} 0           leave it alone again; /{trait} alone says how it is
  /layer {trait} 12    steer a trait at another layer; what is read stays where it was calibrated
  /watch {trait}       colour the tokens by this trait
  /system TEXT   a system prompt from now on; /system alone takes it away
  /alarm stop    an alarm ends the answer; /alarm tell only says so
  /drift         projections over the turns so far, with thresholds
  /new           forget the conversation
  /save chat.json   write the chat with all readings
  /help          this
  /quit          end; Ctrl-D too. Ctrl-C stops an answer, not the program.

Traits: {traits}. Begin with: How are you?   then: /{trait} 1   and the same question again."""


def write_help(traits: Sequence[str]) -> str:
    """Return what can be typed."""
    return HELP.format(trait=traits[0], traits=", ".join(traits))


def split_command(line: str) -> tuple[str, str]:
    """Return a line's word behind the slash, and the rest."""
    word, _, rest = line.strip().removeprefix("/").partition(" ")
    return word, rest.strip()


def check_word(word: str, traits: Sequence[str]) -> None:
    """Refuse a word that is neither a command nor a trait.

    Raises:
        InvalidArgumentError: With the word that may have been meant.
    """
    known = (*WORDS, *traits)
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"Did you mean /{near[0]}?" if near else "/help says what can be typed."
        rule = f"be one of {', '.join(f'/{one}' for one in known)}"
        raise InvalidArgumentError.of("COMMAND", rule, f"/{word}", hint)


def change_settings(settings: Settings, word: str, rest: str, traits: Sequence[str], n_layers: int) -> Settings:
    """Return the settings after a command that changes them; those of others as they are.

    Raises:
        InvalidArgumentError: What follows the word does not fit it.
    """
    if word in traits:
        return settings if not rest else _set_strength(settings, word, rest)
    if word == "layer":
        trait, _, number = rest.rpartition(" ")
        return _set_layer(settings, trait.strip(), number, traits, n_layers)
    if word == "system":
        return replace(settings, system=rest or None)
    if word == "watch":
        if rest not in traits:
            raise InvalidArgumentError.of("TRAIT", f"be one of {', '.join(traits)}", rest, "As in: /watch evil")
        return replace(settings, coloured=rest)
    if word == "alarm":
        if rest not in ("stop", "tell"):
            raise InvalidArgumentError.of("alarm", "be `stop` or `tell`", rest, "As in: /alarm stop")
        return replace(settings, stops=rest == "stop")
    return settings


def describe_settings(settings: Settings) -> str:
    """Say how the next answer will be given."""
    parts = [f"{one} {strength:+g} at layer {settings.layers[one]}" for one, strength in settings.strengths.items()]
    steered = "steered: " + ", ".join(parts) if parts else "not steered"
    system = "" if settings.system is None else f"; system prompt: {settings.system}"
    alarm = "; an alarm ends the answer" if settings.stops else ""
    return f"{steered}; coloured by {settings.coloured}{alarm}{system}"


def check_save_path(rest: str) -> Path:
    """Return where a chat is to be written.

    Raises:
        InvalidArgumentError: No file's name.
    """
    if not rest:
        raise InvalidArgumentError.of("FILE", "be given", rest, "As in: /save chat.json")
    return Path(rest).expanduser()


def _set_strength(settings: Settings, trait: str, text: str) -> Settings:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise InvalidArgumentError.of("STRENGTH", "be a number", text, f"As in: /{trait} 1.5")
    others = {one: value for one, value in settings.strengths.items() if one != trait}
    return replace(settings, strengths=others | ({trait: strength} if strength else {}))


def _set_layer(settings: Settings, trait: str, number: str, traits: Sequence[str], n_layers: int) -> Settings:
    try:
        index = int(number)
    except ValueError:  # no number, or one of thousands of digits
        index = None
    if (trait and trait not in traits) or index is None:
        raise InvalidArgumentError.of("layer", "be a trait and a number", f"{trait} {number}".strip(),
                                      f"As in: /layer {traits[0]} 12, or /layer 12 for all traits")  # fmt: skip
    layer = check_layer(index, n_layers)
    changed = {one: layer for one in ([trait] if trait else traits)}
    return replace(settings, layers=dict(settings.layers) | changed)
