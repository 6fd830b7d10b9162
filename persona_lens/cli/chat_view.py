"""How a watched chat looks: tokens as they come, a line of readings, projections over the turns."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.text import Text

from persona_lens.cli.chat_state import ChatTurn
from persona_lens.cli.terminal import colour_tokens
from persona_lens.monitoring.alarms import TokenReading
from persona_lens.monitoring.readings import TraitMonitor

_WIDTH = 40
_EMPTY, _LIMITS, _DOT = "·", "|", "●"


def make_printable(text: str) -> str:
    """Return a model's text without what would steer the terminal, such as escape sequences."""
    kept = (one if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cf") else "\N{REPLACEMENT CHARACTER}"
            for one in text)  # fmt: skip
    return "".join(kept)


def draw_token(token: TokenReading, trait: TraitMonitor) -> Text:
    """Return a token on a ground that is full orange at the ordinary tokens' 99 % and full blue at their 1 %."""
    text = colour_tokens([make_printable(token.text)], [measure_strength(token.of(trait.trait).projection, trait)])
    if token.acting:
        text.stylize("underline")
    return text


def measure_strength(projection: float, trait: TraitMonitor) -> float:
    """Return how far a projection is from the ordinary tokens' median: 1 at their 99 %, -1 at their 1 %."""
    if trait.responses is None:
        return 0.0
    values = trait.responses.tokens
    low, middle, high = (values[round(share * (len(values) - 1))] for share in (0.01, 0.5, 0.99))
    reach = high - middle if projection > middle else middle - low
    return max(-1.0, min(1.0, (projection - middle) / (reach or 1.0)))


def describe_turn(turn: ChatTurn, traits: Sequence[TraitMonitor], coloured: str) -> str:
    """Say what the answer's readings are: of the trait that colours it, of those that are steered and that alarm."""
    if not turn.tokens:
        return "(an empty answer)"
    parts = []
    for one in traits:
        highest = max(token.of(one.trait).alert for token in turn.tokens)
        if one.trait == coloured or one.trait in turn.strengths or highest:
            parts.append(f"{one.trait} {turn.tokens[-1].of(one.trait).mean:.1f} ({_say(one, highest, turn)})")
    ended = {"end": "", "alarm": "Ended by the alarm. ", "broken off": "Broken off. "}[turn.ended]
    return ended + "; ".join(parts)


def _say(trait: TraitMonitor, highest: int, turn: ChatTurn) -> str:
    # Counted, not in per cent: so few answers are measured that above all of them is not above all that there are.
    ranks = [token.of(trait.trait).mean_quantile for token in turn.tokens]
    known = [one for one in ranks if one is not None]
    if trait.responses is None or not known:
        return "too short to judge"
    n_measured = trait.responses.n_short + len(trait.responses.peaks)
    n_below = round(n_measured * (max(known) if highest else known[-1]))
    return f"{'ALARM: ' if highest else ''}above {n_below} of {n_measured} measured answers"


def draw_drift(turns: Sequence[ChatTurn], traits: Sequence[TraitMonitor]) -> str:
    """Return each trait's mean projection over the turns as a chart of characters, with its thresholds."""
    if not any(turn.tokens for turn in turns):
        return "No answers yet."
    return "\n\n".join(_draw_trait(turns, one) for one in traits)


def _draw_trait(turns: Sequence[ChatTurn], trait: TraitMonitor) -> str:
    means = [turn.mean(trait.trait) for turn in turns]
    limits = list(trait.response_thresholds)
    ordinary = [] if trait.responses is None else [trait.responses.peaks[0]]
    known = [one for one in means if one is not None] + limits + ordinary
    low, high = min(known), max(known)
    step = (high - low) / (_WIDTH - 1) or 1.0

    def place(value: float) -> int:
        return round((value - low) / step)

    names = ", ".join(f"{100 * q:g}% {value:.1f}" for q, value in zip(trait.quantiles, limits, strict=bool(limits)))
    lines = [f"{trait.trait}, layer {trait.layer}: mean projection of each answer (residual-stream units)"
             + (f"; thresholds ({_LIMITS}): {names}" if limits else "")]  # fmt: skip
    for number, (turn, mean) in enumerate(zip(turns, means, strict=True), start=1):
        row = [_EMPTY] * _WIDTH
        for limit in limits:
            row[place(limit)] = _LIMITS
        if mean is None:
            lines.append(f"  {number:3} {''.join(row)} (empty)")
            continue
        row[place(mean)] = _DOT
        highest = max(token.of(trait.trait).alert for token in turn.tokens)
        said = f"  ALARM, above {100 * trait.quantiles[highest - 1]:g}%" if highest else ""
        strength = turn.strengths.get(trait.trait)
        steered = "" if strength is None else f"  steered {strength:+g}"
        lines.append(f"  {number:3} {''.join(row)} {mean:8.1f}{steered}{said}")
    return "\n".join(lines)
