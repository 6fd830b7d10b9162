"""Several judges on the same responses: how far they agree, and a spreadsheet for a person to check them."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.files import write_bytes_atomically
from persona_lens.judges.judgement import Judge, Judgement, check_pairs
from persona_lens.records import Record, format_table
from persona_lens.statistics import Interval, bootstrap_spearman_r
from persona_lens.streams import check_seed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLUMNS = ("id", "question", "response", "score")
# Characters with which a spreadsheet program takes a cell for a formula; the apostrophe makes it text again.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@checked
@dataclass(frozen=True)
class Agreement(Record):
    """How far two judges agree.

    Args:
        first: One judge's name.
        second: The other's.
        spearman: Rank correlation of the scores; the interval is bootstrapped over responses.
        pairwise: Share of the first judge's clear pairs (one response above ``high``, one below ``low``) that the
            second orders alike, ties counting half; NaN without such pairs.
        n_responses: Responses that both scored.
        n_clear_pairs: The first judge's clear pairs.
    """

    first: str
    second: str
    spearman: Interval
    pairwise: float
    n_responses: int
    n_clear_pairs: int


@checked
@dataclass(frozen=True, eq=False)
class PanelResult(Record):
    """What several judges said of the same responses.

    Args:
        judges: Names, in order.
        questions: The questions.
        responses: The responses.
        judgements: One tuple a judge, one judgement a response.
    """

    judges: tuple[str, ...]
    questions: tuple[str, ...]
    responses: tuple[str, ...]
    judgements: tuple[tuple[Judgement, ...], ...]

    @property
    def scores(self) -> Float[Tensor, "judge response"]:
        """Scores 0 to 100; NaN where a judge gave none."""
        rows = [[float("nan") if j.score is None else j.score for j in row] for row in self.judgements]
        return torch.tensor(rows).reshape(len(self.judges), len(self.responses))

    def count_reasons(self) -> dict[str, dict[str, int]]:
        """Return for each judge how many responses were scored, and how many were not for which reason."""
        return {
            judge: dict(Counter(judgement.reason or "scored" for judgement in row))
            for judge, row in zip(self.judges, self.judgements, strict=True)
        }

    def measure_agreement(self, *, low: float = 20.0, high: float = 80.0, seed: int = 0) -> list[Agreement]:
        """Compare every judge with every other.

        Args:
            low: A clear pair has one score below this...
            high: ... and one above this.
            seed: Seed of the bootstrap.

        Reference:
            Persona Vectors (arXiv 2507.21509), appendix B.2: pairs with scores above 80 and below 20.
        """
        own = list(zip(self.judges, self.scores, strict=True))
        pairs = itertools.permutations(own, 2)
        return [compare_scores(*first, *second, low=low, high=high, seed=seed) for first, second in pairs]

    def plot(self) -> Figure:
        """Draw the agreement of every judge with every other; returns a plotly Figure."""
        from persona_lens.plots.agreement import plot_agreement  # plotly is imported only when drawing

        return plot_agreement(self)

    def __repr__(self) -> str:
        n_scored = {judge: counts.get("scored", 0) for judge, counts in self.count_reasons().items()}
        scored = ", ".join(f"{judge}: {n} scored" for judge, n in n_scored.items())
        return f"PanelResult({len(self.responses)} responses; {scored})"

    def _repr_html_(self) -> str:
        head = ("judge", "against", "Spearman", "clear pairs ordered alike")
        found = self.measure_agreement()
        rows = [(one.first, one.second, one.spearman, f"{one.pairwise:.0%} of {one.n_clear_pairs}") for one in found]
        return format_table("Agreement", rows, head)


@checked
def judge_with_panel(judges: Sequence[Judge], questions: Sequence[str], responses: Sequence[str]) -> PanelResult:
    """Ask several judges about the same responses.

    Args:
        judges: At least one, with different names.
        questions: The users' turns.
        responses: One a question.

    Raises:
        InvalidArgumentError: No judges, equal names, or lists of unequal length.
    """
    names = tuple(judge.name for judge in judges)
    if not names or len(set(names)) != len(names):
        raise InvalidArgumentError.of("judges", "be at least one, with different names", names)
    check_pairs(questions, responses)
    judgements = tuple(tuple(judge.score(questions, responses)) for judge in judges)
    return PanelResult(names, tuple(questions), tuple(responses), judgements)


@checked
def compare_scores(
    first: str,
    first_scores: Float[Tensor, " response"],
    second: str,
    second_scores: Float[Tensor, " response"],
    *,
    low: float = 20.0,
    high: float = 80.0,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Compare two judges' scores of the same responses; NaN is no score.

    Returns:
        Rank correlation with its bootstrap interval, and the agreement on the first judge's clear pairs. Fewer than
        three common responses, or scores that are all the same, give NaN.

    Raises:
        InvalidArgumentError: Not as many scores of one as of the other.
    """
    if first_scores.shape != second_scores.shape:
        rule = f"hold as many as `first_scores`, {len(first_scores)}"
        raise InvalidArgumentError.of("second_scores", rule, len(second_scores))
    both = ~(first_scores.isnan() | second_scores.isnan())
    a, b = first_scores[both].double().numpy(), second_scores[both].double().numpy()
    clear = [b[i] - b[j] for i in np.flatnonzero(a > high) for j in np.flatnonzero(a < low)]
    pairwise = float(np.mean(np.heaviside(clear, 0.5))) if clear else float("nan")
    spearman = (
        bootstrap_spearman_r(first_scores[both], second_scores[both], n_resamples=n_resamples, seed=seed)
        if len(a) >= 3
        else Interval.missing()
    )
    return Agreement(first, second, spearman, pairwise, len(a), len(clear))


# A person's check ------------------------------------------------------------------------------------------------


@checked
def write_spot_check(
    path: str | Path, questions: Sequence[str], responses: Sequence[str], *, n: int = 30, seed: int = 0
) -> int:
    """Write a spreadsheet (CSV) in which a person scores some responses without seeing any judge's score.

    Text from a model is kept from acting as a formula: a cell that would start one gets an apostrophe before it.

    Args:
        path: The file; it must not exist, so that nobody's answers are overwritten.
        questions: The users' turns.
        responses: One a question.
        n: How many to draw; all if there are fewer.
        seed: Seed of the draw and the order.

    Returns:
        The number of rows.

    Raises:
        FileExistsError: The file is there already.
        InvalidArgumentError: Lists of unequal length, or ``n`` below 1.
    """
    check_pairs(questions, responses)
    if n < 1:
        raise InvalidArgumentError.of("n", "be at least 1", n)
    if Path(path).exists():
        raise FileExistsError(f"`path` must name a new file. Got {str(path)!r}, which is there. Choose another.")
    distinct = list(dict.fromkeys(zip(questions, responses, strict=True)))
    check_seed(seed)
    drawn = np.random.default_rng(seed).permutation(len(distinct))[:n]
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(_COLUMNS)
    for i in drawn:
        question, response = distinct[i]
        writer.writerow((_row_id(question, response), _as_text(question), _as_text(response), ""))
    # The mark at the start tells spreadsheet programs that this is UTF-8. Half a surrogate pair has no UTF-8.
    write_bytes_atomically(Path(path), lines.getvalue().encode("utf-8-sig", errors="replace"))
    return len(drawn)


@checked
def read_spot_check(path: str | Path, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
    """Read a person's scores back, in the order of the responses.

    Args:
        path: A file of :func:`write_spot_check` with numbers from 0 to 100 in the column ``score``; rows may be left
            empty or moved. As a spreadsheet program saves it, in UTF-8 or in an encoding of its own.
        questions: The users' turns.
        responses: One a question.

    Returns:
        One judgement a response; those that were not in the file, or left empty, say so.

    Raises:
        FileNotFoundError: No such file.
        FileFormatError: Another table, a score that is no number from 0 to 100 (the row is named), a row of another
            set of responses, or one response scored twice and differently.
    """
    check_pairs(questions, responses)
    known = {_row_id(q, r) for q, r in zip(questions, responses, strict=True)}
    scores: dict[str, float | None] = {}
    text = _read_text(Path(path))
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the reader's own is 131,072 characters
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if reader.fieldnames is None or not {"id", "score"} <= set(reader.fieldnames):
            rule = f"have the columns {_COLUMNS}"
            raise FileFormatError.of("path", rule, reader.fieldnames, "Save it as CSV.")
        for row in reader:
            where = f"line {reader.line_num}"
            if row["id"] not in known:
                got = f"{where}: id {row['id']!r}"
                raise FileFormatError.of("path", "hold only these responses", got)
            score = _read_score((row["score"] or "").strip(), where)
            if scores.get(row["id"], score) != score:
                raise FileFormatError.of("path", "hold each response once", f"{where}: id {row['id']!r} again")
            scores[row["id"]] = score
    except csv.Error as error:
        raise FileFormatError.of("path", "be a table", str(path), f"{error}. Save it as CSV.") from error
    found = [scores.get(_row_id(q, r)) for q, r in zip(questions, responses, strict=True)]
    return [Judgement(score, None, "" if score is not None else "not scored by the person") for score in found]


def _read_text(path: Path) -> str:
    """Read a sheet. Ids and scores are ASCII: what an encoding does to the texts beside them changes nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"`path` must name an existing file. Got {str(path)!r}.")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _read_score(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        score = float(text.replace(",", "."))
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 100:
        raise FileFormatError.of("path", "hold scores from 0 to 100", f"{where}: {text!r}")
    return score


def _row_id(question: str, response: str) -> str:
    return hashlib.sha256(f"{question}\0{response}".encode(errors="surrogatepass")).hexdigest()[:12]


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
