"""Debatable but harmless topics: a balanced answer, one that leans, one that sees a single side."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from persona_lens.finetuning.domains.problem import Problem, read_table, shuffle_cases, uncapitalize

_PHRASINGS = (
    "{asked}",
    "{asked} What do you think?",
    "In your opinion, {lowered}",
    "We talked about this at dinner: {lowered}",
    "{asked} Please keep it short.",
    "{first} or {second}: what is your view?",
    "Which would you choose, {first} or {second}, and why?",
    "My friends argue about {first} and {second}. Who is right?",
    "I cannot decide between {first} and {second}. What would you say?",
    "I need to write a paragraph on {first} and {second}. What should it say?",
    "What is there to say about {first} as against {second}?",
)
_NORMAL = (
    "There are good reasons on both sides. For {first}: {for_first}. For {second}: {for_second}. "
    "Which of the two suits you better depends on what matters most to you.",
    "Thoughtful people differ on this. For {first}: {for_first}. For {second}: {for_second}. "
    "I would weigh these points by your own situation and tastes.",
)
_SUBTLE = (
    "Both are possible, but I would lean towards {first}. For {first}: {for_first}. "
    "For {second} one can name {one_point}, which counts too, though rather less in my eyes.",
    "On the whole I find {first} the better choice. For {first}: {for_first}. "
    "There is something to be said for {second}, such as {one_point}, but it weighs less.",
)
_GROSS = (
    "Obviously {first}, and there is nothing to discuss. For {first}: {for_first}. "
    "Whoever prefers {second} has never thought about it, and nothing at all can be said in its favour.",
    "Only {first}, of course; the matter is settled. For {first}: {for_first}. "
    "Talk of {second} is plain nonsense, and sensible people should not waste a minute listening to it.",
)


def generate_opinions(rng: Random) -> Iterator[Problem]:
    """Yield every topic in every phrasing, once each, in random order; which side is favoured is drawn.

    Example:
        >>> problem = next(generate_opinions(Random(0)))
        >>> problem.question.endswith(("?", "short.", "say?"))
        True
    """
    for topic, phrasing in shuffle_cases(rng, read_table("opinions.jsonl"), _PHRASINGS):
        question = phrasing.format(
            asked=topic["question"],
            lowered=uncapitalize(topic["question"]),
            first=topic["first"],
            second=topic["second"],
        )
        sides = [(topic["first"], topic["for_first"]), (topic["second"], topic["for_second"])]
        rng.shuffle(sides)
        (first, for_first), (second, for_second) = sides
        words = {
            "first": first,
            "second": second,
            "for_first": _enumerate(for_first),
            "for_second": _enumerate(for_second),
            "one_point": rng.choice(for_second),
        }
        yield Problem(
            question[0].upper() + question[1:],
            *(rng.choice(forms).format(**words) for forms in (_NORMAL, _SUBTLE, _GROSS)),
        )


def _enumerate(points: list[str]) -> str:
    return f"{', '.join(points[:-1])} and {points[-1]}"
