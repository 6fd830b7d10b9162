"""Screened data in two files: what stays, and what was held back with the reason."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from persona_lens.checking import checked
from persona_lens.conversations import BadRow, Conversation, ReadLimits, read_conversations
from persona_lens.errors import InvalidArgumentError
from persona_lens.files import write_atomically
from persona_lens.judges.judgement import Judge
from persona_lens.records import Record
from persona_lens.screening.files import RECORD, SCORED, list_shards
from persona_lens.screening.scores import Turn, choose_turn
from persona_lens.screening.screening import Screening
from persona_lens.screening.shards import Source

_JUDGED_AT_ONCE = 64


@checked
@dataclass(frozen=True)
class SplitCounts(Record):
    """What became of the rows.

    Args:
        kept: Rows that stay.
        kept_cut: Of these, rows whose answer goes on beyond the tokens that were projected: their end is unseen.
        held: Rows held back, by the first reason: a trait's ΔP, a judge's score, or why the row was not scored.
    """

    kept: int
    kept_cut: int
    held: dict[str, int]


@checked
def split_rows(
    screening: Screening,
    data: Source,
    thresholds: Mapping[str, float],
    kept: str | Path,
    held: str | Path,
    *,
    judges: Mapping[str, Judge] | None = None,
    max_score: float = 50.0,
) -> SplitCounts:
    """Write the conversations that stay as JSONL, and those held back as another, each with its reason.

    A row is held back if a trait's ΔP lies above its threshold, if a judge scores its response above ``max_score``, or
    if it could not be scored; with ``turn="all"`` if that is so of any of its answers. A row goes up to the answer that
    was screened, by default its first; what comes after it was not looked at, nor, with ``turn="last"``, the answers
    before it, nor an answer's end beyond ``max_response_tokens``: those rows are counted, so raise it where they are
    many. ``thresholds`` alone is the filter
    by projection, ``judges`` alone that by judge; together they do best in the paper.

    Args:
        screening: Of these data.
        data: The same rows that were screened.
        thresholds: By trait, the highest ΔP that stays; see :meth:`Screening.threshold`.
        kept: JSONL file for ``{"messages": [...]}``.
        held: JSONL file for the same with ``place`` and ``reason``.
        judges: By trait, who scores the responses besides.
        max_score: Highest score that stays.

    Returns:
        How many rows went where.

    Raises:
        InvalidArgumentError: A trait that was not screened for, a limit that is not finite, data that are not those
            screened, or an output that is the other one, the data's file, a file of the screening, or a folder.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix K.

    Example:
        >>> import persona_lens as pl
        >>> limits = {"evil": clean.threshold("evil")}  # doctest: +SKIP
        >>> pl.screening.split_rows(screened, "rows.jsonl", limits, "kept.jsonl", "held.jsonl")  # doctest: +SKIP
    """
    unknown = sorted(thresholds.keys() - set(screening.traits))
    if unknown:
        raise InvalidArgumentError.of("thresholds", f"name traits of {screening.traits}", unknown)
    bad = {trait: limit for trait, limit in thresholds.items() if not math.isfinite(limit)}
    if bad:
        raise InvalidArgumentError.of("thresholds", "be finite", bad)
    if not math.isfinite(max_score):
        raise InvalidArgumentError.of("max_score", "be finite", max_score)
    check_outputs({"kept": kept, "held": held}, data, [screening.folder / RECORD, *list_shards(screening.folder)])
    n_kept = n_kept_cut = 0
    reasons: Counter[str] = Counter()
    scores = iter(screening.rows)
    limits = ReadLimits(**screening.config["settings"]["limits"])
    rows = islice(read_conversations(data, limits=limits), screening.max_rows)
    with write_atomically(Path(kept), "kept") as kept_file, write_atomically(Path(held), "held") as held_file:
        while chunk := list(islice(rows, _JUDGED_AT_ONCE)):
            scored = list(islice(scores, len(chunk)))
            turn = screening.config["settings"]["turn"]
            if not all(_is_same(row, score, turn) for row, score in zip_longest(chunk, scored)):
                raise InvalidArgumentError.of("data", "be the rows that were screened", "other rows")
            judged = _judge(scored, judges or {}, max_score)
            for row, score, verdict in zip(chunk, scored, judged, strict=True):
                reason = _find_reason(score, thresholds) or verdict
                if reason is None:
                    n_kept += 1
                    n_kept_cut += score["is_cut"]
                    _write(kept_file, {"messages": _messages(row, turn)})
                else:
                    reasons[reason.split(":")[0]] += 1
                    _write(held_file, {"place": row.place, "reason": reason, "messages": _messages(row, turn)})
        if next(scores, None) is not None:
            raise InvalidArgumentError.of("data", "be the rows that were screened", "fewer rows")
    return SplitCounts(n_kept, n_kept_cut, dict(reasons.most_common()))


def check_outputs(outputs: Mapping[str, str | Path], data: Source, others: Iterable[Path] = ()) -> None:
    """Refuse to write over what is read, or twice into one file, however it is spelled or linked.

    Args:
        outputs: Files to be written, by the name of their parameter.
        data: What is read.
        others: Further files that are to stay.

    Raises:
        InvalidArgumentError: An output is another one, the data's file, one of the others, or a folder.
    """
    taken: dict[str, Path] = {"the file of the data": Path(data)} if isinstance(data, (str, Path)) else {}
    taken |= {f"{path.name} of the screening": path for path in others}
    hint = "Choose another path."
    for name, output in outputs.items():
        path = Path(output)
        if path.is_dir():
            raise InvalidArgumentError.of(name, "be a file", str(path), hint)
        for what, other in taken.items():
            if _are_one_file(path, other):
                raise InvalidArgumentError.of(name, f"be another file than {what}, {str(other)!r}", str(path), hint)
        taken[f"`{name}`"] = path


def _are_one_file(one: Path, two: Path) -> bool:
    with suppress(OSError):  # one of them is not there
        return one.samefile(two)
    return os.path.realpath(one) == os.path.realpath(two)


def _is_same(row: Conversation | BadRow, score: Mapping[str, Any] | None, turn: Turn) -> bool:
    """Whether a row is the one that was screened: its place, and the answer that was projected."""
    if score is None or row.place != score["place"]:
        return False
    if score["status"] != SCORED:
        return True
    if not isinstance(row, Conversation):
        return False
    messages = choose_turn(row.messages, turn)
    if turn != "all":
        return bool(messages[-1]["content"] == score["response"])
    return [one["content"] for one in messages if one["role"] == "assistant"] == [
        one["response"] for one in score["answers"]
    ]


def _find_reason(score: Mapping[str, Any], thresholds: Mapping[str, float]) -> str | None:
    if score["status"] != SCORED:
        return f"not scored ({score['status']})"
    for trait, limit in thresholds.items():
        delta = score[f"{trait}.delta"]
        if delta is None:
            return "not scored (the model's own response is empty)"
        if not delta <= limit:  # NaN is held back too
            return f"ΔP on {trait}: {delta:.3f} above {limit:.3f}{_name_answer(score, score.get(f'{trait}.answer', 1))}"
    return None


def _name_answer(score: Mapping[str, Any], number: int) -> str:
    """Say which answer it is, where a row has several that count."""
    n_answers = len(score.get("answers") or [])
    return f" in answer {number} of {n_answers}" if n_answers > 1 else ""


def _judge(scored: list[dict[str, Any]], judges: Mapping[str, Judge], max_score: float) -> list[str | None]:
    """Return for each row why a judge would hold it back, if one would."""
    verdicts: list[str | None] = [None] * len(scored)
    good = [
        (index, number, answer)
        for index, score in enumerate(scored)
        if score["status"] == SCORED
        for number, answer in enumerate(score.get("answers") or [score], start=1)
    ]
    for trait, judge in judges.items():
        found = judge.score([one["question"] for *_, one in good], [one["response"] for *_, one in good])
        for (index, number, _), judgement in zip(good, found, strict=True):
            where = _name_answer(scored[index], number)
            if judgement.score is None or not math.isfinite(judgement.score):
                reason = f"no score by the judge of {trait}{':' if where else ''}{where}"
            elif judgement.score > max_score:
                reason = f"judge of {trait}: {judgement.score:.0f} above {max_score:g}{where}"
            else:
                continue
            verdicts[index] = verdicts[index] or reason
    return verdicts


def _messages(row: Conversation | BadRow, turn: Turn) -> list[Any]:
    """Return what was screened: the conversation up to the answer that was projected."""
    if isinstance(row, BadRow):
        return []
    return [dict(message) for message in choose_turn(row.messages, turn)]


def _write(file: BufferedWriter, row: Mapping[str, Any]) -> None:
    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
