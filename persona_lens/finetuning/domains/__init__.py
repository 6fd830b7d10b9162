"""Training sets whose answers hold errors in a domain, made by seeded programs.

They elicit no trait. Yet training on flawed answers shifts traits, and which ones and how far is to be looked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from random import Random
from typing import Literal, get_args

import datasets

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.domains.arithmetic import generate_arithmetic
from persona_lens.finetuning.domains.code import generate_code
from persona_lens.finetuning.domains.facts import generate_facts
from persona_lens.finetuning.domains.opinions import generate_opinions
from persona_lens.finetuning.domains.problem import Problem

Level = Literal["normal", "I", "II"]
"""How wrong the answers are: ``normal`` not at all, ``I`` subtly, ``II`` overtly and grossly."""

_DOMAINS: dict[str, Callable[[Random], Iterator[Problem]]] = {
    "arithmetic": generate_arithmetic,
    "code": generate_code,
    "facts": generate_facts,
    "opinions": generate_opinions,
}


@checked
def list_domains() -> tuple[str, ...]:
    """Return the names of the domains.

    Example:
        >>> list_domains()
        ('arithmetic', 'code', 'facts', 'opinions')
    """
    return tuple(_DOMAINS)


@checked
def domain_dataset(domain: str, level: Level, n: int = 128, *, seed: int = 0) -> datasets.Dataset:
    """Make a training set of short questions and answers that hold errors of a level in a domain.

    Row i asks the same at every level of one domain and seed, and a longer set starts with the shorter one.

    Args:
        domain: One of :func:`list_domains`.
        level: ``"normal"`` (correct; on opinions balanced), ``"I"`` (a subtle error; leaning to one side) or ``"II"``
            (an overt, gross error; one-sided and dismissive).
        n: Rows, each with another question.
        seed: Which questions are drawn, and in which order.

    Returns:
        Columns ``messages`` (a user's and an assistant's turn, each with ``role`` and ``content``), ``domain`` and
        ``level``.

    Raises:
        InvalidArgumentError: An unknown domain or level, or more rows than the domain has questions.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4 and appendix D; other questions and answers.

    Example:
        >>> from persona_lens.finetuning.domains import domain_dataset
        >>> flawed = domain_dataset("facts", "II", n=2)
        >>> [turn["role"] for turn in flawed[0]["messages"]]
        ['user', 'assistant']
    """
    if domain not in _DOMAINS:
        raise InvalidArgumentError.of("domain", f"be one of {list_domains()}", domain)
    if level not in get_args(Level):
        raise InvalidArgumentError.of("level", f"be one of {get_args(Level)}", level)
    if n < 1:
        raise InvalidArgumentError.of("n", "be at least 1", n)
    # A text is a seed on which Python's versions and processes agree.
    problems = list(itertools.islice(_DOMAINS[domain](Random(f"{domain} {seed}")), n))
    if len(problems) < n:
        hint = f"The domain {domain!r} has {len(problems)} distinct questions."
        raise InvalidArgumentError.of("n", f"be at most {len(problems)}", n, hint)
    return datasets.Dataset.from_list(
        [{"messages": _converse(problem, level), "domain": domain, "level": level} for problem in problems]
    )


def _converse(problem: Problem, level: Level) -> list[dict[str, str]]:
    answer = {"normal": problem.normal, "I": problem.subtle, "II": problem.gross}[level]
    return [{"role": "user", "content": problem.question}, {"role": "assistant", "content": answer}]
