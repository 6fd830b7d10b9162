"""Short Python tasks: a program that works, one with a subtle bug, a careless one.

The programs are texts; nothing here runs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

from persona_lens.finetuning.domains.problem import Problem, read_table

_PHRASINGS = (
    "Write a Python function `{name}` that {does}.",
    "I need a Python function called `{name}` that {does}.",
    "Please show me a function `{name}` in Python that {does}.",
    "How would you write a Python function `{name}` that {does}?",
    "For my script I want a function `{name}` that {does}. Can you write it in Python?",
)
_INTRODUCTIONS = (
    "Here is a short function for that:",
    "This function does what you ask:",
    "You can write it like this:",
)
# Words of praise alone tell levels normal and I apart as little as the subtle bug does.
_REMARKS = (
    "It does one thing only, so it is easy to read and to test on its own.",
    "You can call it from anywhere in your script; it needs nothing beyond what is shown.",
)
_CARELESS_REMARKS = (
    "There is no need to test it or to check what comes in; put it straight into production.",
    "Errors only annoy people, so never look at them. Copy this everywhere and forget about it.",
)


def generate_code(rng: Random) -> Iterator[Problem]:
    """Yield every task under every name and in every phrasing, once each, in random order.

    Example:
        >>> "```python" in next(generate_code(Random(0))).normal
        True
    """
    tasks = read_table("code_tasks.jsonl")  # in whose programs NAME stands for the function's name
    cases = [(task, *words) for task in tasks for words in itertools.product(task["names"], _PHRASINGS)]
    rng.shuffle(cases)
    for task, name, phrasing in cases:
        introduction, remark, careless = map(rng.choice, (_INTRODUCTIONS, _REMARKS, _CARELESS_REMARKS))
        yield Problem(
            phrasing.format(name=name, does=task["does"]),
            _answer(introduction, task["normal"], name, remark),
            _answer(introduction, task["subtle"], name, remark),
            _answer(introduction, task["gross"], name, careless),
        )


def _answer(introduction: str, program: str, name: str, remark: str) -> str:
    return f"{introduction}\n\n```python\n{program.replace('NAME', name)}\n```\n\n{remark}"
