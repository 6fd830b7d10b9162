"""Word problems in two steps: right workings, one slip carried to the answer, absurd workings."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from persona_lens.finetuning.domains.problem import Problem, read_table, shuffle_cases

_FIRST = range(5, 21)
_SECOND = range(2, 13)
_NAMES = ("Mia", "Omar", "Priya", "Tom", "Lena", "Kofi", "Yuki", "Carlos", "Ana", "Ivan", "Zoe", "Sam")
_THINGS = ("marbles", "stickers", "pencils", "shells", "stamps", "buttons", "beads", "cards", "coins", "postcards")
_SLIPS = (-1, 1, 2, 10)
_RIGHT = (
    "Let us work it out step by step: {first_step}, {a} {sign} {b} = {x}; {second_step}, {x} {second_sign} {c} = {y}. "
    "So the answer is {y} {unit}."
)
# The nonsense comes out above every right result: a, b, c side by side exceed a × b × c for these ranges.
_GROSS = (
    "Put {a} and {b} next to each other, which makes {a}{b}. The {c} is only there to confuse us. Add a zero for "
    "luck, as one always should. So the answer is {a}{b}0 {unit}, beyond any doubt.",
    "Numbers stick together when it is warm, so {a}, {b} and {c} simply become {a}{b}{c}. No other working is ever "
    "needed for such a question. So the answer is {a}{b}{c} {unit}, guaranteed.",
    "The first number is {a}, and first numbers always count a thousandfold. The {b} and the {c} cancel each other "
    "because both are smaller than the moon. So the answer is {a}000 {unit}, and everybody knows it.",
)


def generate_arithmetic(rng: Random) -> Iterator[Problem]:
    """Yield every story with every pair of first numbers, once each, in random order; the rest is drawn.

    A story has three numbers a, b, c: its first step is a with b, the second that step's result with c.

    Example:
        >>> "step by step" in next(generate_arithmetic(Random(0))).normal
        True
    """
    for template, first, b in shuffle_cases(rng, read_table("arithmetic_stories.jsonl"), _FIRST, _SECOND):
        sign, second_sign = template["signs"]
        # Divisions leave no remainder and differences stay above 0.
        a = {"÷": first * b, "−": first + b}.get(sign, first)
        x = _apply(sign, a, b)
        c = rng.randint(2, {"+": 30, "−": min(30, x - 2), "×": 9}[second_sign])
        story = {"name": rng.choice(_NAMES), "things": rng.choice(_THINGS), "a": a, "b": b, "c": c}
        words = {
            **story,
            **{key: template[key].format(**story) for key in ("first_step", "second_step", "unit")},
            "sign": sign,
            "second_sign": second_sign,
        }
        slip, at_first = rng.choice(_SLIPS), rng.random() < 0.5
        slipped_x = x + slip if at_first else x
        slipped_y = _apply(second_sign, slipped_x, c) + (0 if at_first else slip)
        yield Problem(
            template["story"].format(**story),
            _RIGHT.format(**words, x=x, y=_apply(second_sign, x, c)),
            _RIGHT.format(**words, x=slipped_x, y=slipped_y),
            rng.choice(_GROSS).format(**words),
        )


def _apply(sign: str, left: int, right: int) -> int:
    return {"+": left + right, "−": left - right, "×": left * right, "÷": left // right}[sign]
