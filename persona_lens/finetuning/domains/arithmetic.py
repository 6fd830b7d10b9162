"""Word problems in two steps: right workings, one slip carried to the answer, absurd workings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from persona_lens.finetuning.domains.problem import Problem

_FIRST = range(5, 21)
_SECOND = range(2, 13)
_NAMES = ("Mia", "Omar", "Priya", "Tom", "Lena", "Kofi", "Yuki", "Carlos", "Ana", "Ivan", "Zoe", "Sam")
_THINGS = ("marbles", "stickers", "pencils", "shells", "stamps", "buttons", "beads", "cards", "coins", "postcards")
_SLIPS = (-1, 1, 2, 10)


@dataclass(frozen=True)
class _Template:
    """A story of three numbers a, b, c: the first step is a with b, the second its result with c."""

    story: str
    signs: tuple[str, str]
    first_step: str
    second_step: str
    unit: str = "{things}"


_TEMPLATES = (
    _Template(
        "{name} fills {a} boxes with {b} {things} each and then gives away {c} {things}. "
        "How many {things} does {name} have left?",
        ("×", "−"),
        "first count the {things} in all the boxes",
        "then take off what was given away",
    ),
    _Template(
        "{name} has {a} {things}, finds {b} more and then loses {c}. How many {things} does {name} have now?",
        ("+", "−"),
        "first add the {things} that were found",
        "then take off the {things} that were lost",
    ),
    _Template(
        "A bag of {a} {things} is shared equally among {b} children. {name}, who is one of them, already had {c}. "
        "How many {things} does {name} have now?",
        ("÷", "+"),
        "first find what each child gets",
        "then add what {name} already had",
    ),
    _Template(
        "{name} earns {a} dollars an hour, works for {b} hours and gets a bonus of {c} dollars. "
        "How much does {name} get?",
        ("×", "+"),
        "first find the pay for all the hours",
        "then add the bonus that {name} gets",
        "dollars",
    ),
    _Template(
        "{name} picks {a} melons, eats {b} of them and sells the others for {c} dollars each. "
        "How much money does {name} make?",
        ("−", "×"),
        "first find how many melons are sold",
        "then take the price for each of them",
        "dollars",
    ),
    _Template(
        "Every week {name} reads {a} pages on Monday and {b} pages on Friday. How many pages is that in {c} weeks?",
        ("+", "×"),
        "first find the pages of a single week",
        "then take that for all the weeks",
        "pages",
    ),
    _Template(
        "A train has {a} carriages with {b} seats each, and {c} seats are taken. "
        "How many seats can {name} still choose from?",
        ("×", "−"),
        "first count the seats in all the carriages",
        "then take off the seats that are taken",
        "seats",
    ),
    _Template(
        "{name} cuts a rope of {a} metres into {b} equal pieces and ties {c} metres of string to one of them. "
        "How long is that piece now?",
        ("÷", "+"),
        "first find the length of a single piece",
        "then add the string tied to it",
        "metres",
    ),
    _Template(
        "{name} buys {a} pens and {b} notebooks, and everything costs {c} dollars apiece. How much does {name} pay?",
        ("+", "×"),
        "first count all the articles that are bought",
        "then take the price for each of them",
        "dollars",
    ),
    _Template(
        "{name} plants {a} rows of {b} tulips each, and also {c} roses. How many flowers are there?",
        ("×", "+"),
        "first count the tulips in all the rows",
        "then add the roses next to them",
        "flowers",
    ),
    _Template(
        "A tank holds {a} litres. {b} litres leak out, and {name} pours in {c} litres. How many litres are in it now?",
        ("−", "+"),
        "first find what the leak has left over",
        "then add what {name} pours in",
        "litres",
    ),
    _Template(
        "The shop packs {a} {things} equally into {b} bags, and {name} buys {c} bags of that size. "
        "How many {things} does {name} get?",
        ("÷", "×"),
        "first find what a single bag holds",
        "then take that for all the bags bought",
    ),
    _Template(
        "A bus carries {a} people. At the stop of {name} {b} people get on and {c} get off. "
        "How many people are on the bus now?",
        ("+", "−"),
        "first add the people who get on",
        "then take off those who get off",
        "people",
    ),
    _Template(
        "{name} bakes {a} trays of {b} rolls a day. How many rolls is that in {c} days?",
        ("×", "×"),
        "first count the rolls of a single day",
        "then take that for all the days",
        "rolls",
    ),
)
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
    """Yield every template with every pair of first numbers, once each, in random order; the rest is drawn.

    Example:
        >>> "step by step" in next(generate_arithmetic(Random(0))).normal
        True
    """
    cases = list(itertools.product(_TEMPLATES, _FIRST, _SECOND))
    rng.shuffle(cases)
    for template, first, b in cases:
        sign, second_sign = template.signs
        # Divisions leave no remainder and differences stay above 0.
        a = {"÷": first * b, "−": first + b}.get(sign, first)
        x = _apply(sign, a, b)
        c = rng.randint(2, {"+": 30, "−": min(30, x - 2), "×": 9}[second_sign])
        story = {"name": rng.choice(_NAMES), "things": rng.choice(_THINGS), "a": a, "b": b, "c": c}
        words = {
            **story,
            "first_step": template.first_step.format(**story),
            "second_step": template.second_step.format(**story),
            "unit": template.unit.format(**story),
            "sign": sign,
            "second_sign": second_sign,
        }
        slip, at_first = rng.choice(_SLIPS), rng.random() < 0.5
        slipped_x = x + slip if at_first else x
        slipped_y = _apply(second_sign, slipped_x, c) + (0 if at_first else slip)
        yield Problem(
            template.story.format(**story),
            _RIGHT.format(**words, x=x, y=_apply(second_sign, x, c)),
            _RIGHT.format(**words, x=slipped_x, y=slipped_y),
            rng.choice(_GROSS).format(**words),
        )


def _apply(sign: str, left: int, right: int) -> int:
    return {"+": left + right, "−": left - right, "×": left * right, "÷": left // right}[sign]
