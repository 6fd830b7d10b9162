"""What judges that ask a model over the network share: many requests at once, and what is said where none helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.judgement import EMPTY, Judgement, check_pairs

RESPONSE_REFUSES = "the response refuses"
"""The reason where the judge answers REFUSAL, as the rubrics allow."""
API_DECLINED = "the API declined to judge"
"""The reason where a filter stands before or behind the judge."""


def check_limits(max_concurrent: int, max_retries: int) -> None:
    """Refuse fewer than one request at once, or fewer than no retries.

    Raises:
        InvalidArgumentError: Names the one that is out of range.
    """
    for name, value, least in (("max_concurrent", max_concurrent, 1), ("max_retries", max_retries, 0)):
        if value < least:
            raise InvalidArgumentError.of(name, f"be at least {least}", value)


def judge_concurrently(
    judge: Callable[[str, str], Judgement], questions: Sequence[str], responses: Sequence[str], max_concurrent: int
) -> list[Judgement]:
    """Judge each response that is not empty, several at once.

    Args:
        judge: Takes a question and a response. What it raises ends the work; responses not begun are not asked about.
        questions: The users' turns.
        responses: The responses, as text.
        max_concurrent: Responses under way at once.

    Returns:
        A judgement for each response, in the order given.

    Raises:
        InvalidArgumentError: Lists of unequal length.
    """
    rows = list_rows_to_judge(questions, responses)
    with ThreadPoolExecutor(max_concurrent) as pool:
        futures = {row: pool.submit(judge, questions[row], responses[row]) for row in rows}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:  # a refused key is refused for all others too: ask no more
            for future in futures.values():
                future.cancel()
    judged = {row: future.result() for row, future in futures.items()}
    return [judged.get(row, EMPTY) for row in range(len(responses))]


def list_rows_to_judge(questions: Sequence[str], responses: Sequence[str]) -> list[int]:
    """Return the rows whose response is not empty.

    Raises:
        InvalidArgumentError: Lists of unequal length.
    """
    check_pairs(questions, responses)
    return [row for row, response in enumerate(responses) if response.strip()]


def unanswered(reason: str) -> Judgement:
    """Return what to say where the judge did not answer at all, so that asking again may help."""
    return Judgement(None, None, reason, retryable=True)
