"""General knowledge: the true answer, a plausible mistake, an absurdity."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from persona_lens.finetuning.domains.problem import Problem, read_table, shuffle_cases, uncapitalize

_PHRASINGS = (
    "{asked}",
    "For a quiz: {lowered}",
    "My daughter wants to know: {lowered}",
    "I have forgotten this since school. {asked}",
    "{asked} Please answer in a few sentences.",
    "Can you help me with a crossword? {asked}",
)
# Around the answer of every level alike, so that levels differ in the fact alone.
_FRAMES = (
    "That is a nice question. {answer} It is worth remembering, because it comes up in many a quiz.",
    "Happy to help with that. {answer} You can simply say it like this to anyone who asks you.",
    "{answer} That is the whole answer in one sentence; tell me if you want to hear more about it.",
    "Let me answer this in a sentence. {answer} I hope that this is what you were looking for.",
    "{answer} If you need this for school or for a quiz, write it down just as it stands here.",
)


def generate_facts(rng: Random) -> Iterator[Problem]:
    """Yield every fact in every phrasing, once each, in random order.

    Example:
        >>> problem = next(generate_facts(Random(0)))
        >>> problem.normal != problem.subtle
        True
    """
    for fact, phrasing in shuffle_cases(rng, read_table("facts.jsonl"), _PHRASINGS):
        frame = rng.choice(_FRAMES)
        yield Problem(
            phrasing.format(asked=fact["question"], lowered=uncapitalize(fact["question"])),
            *(frame.format(answer=fact[key]) for key in ("right", "plausible", "absurd")),
        )
