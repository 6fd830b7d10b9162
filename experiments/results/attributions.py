"""What each way of screening finds, among the same questions and in a mixed file, and what it costs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import (
    Interval,
    bootstrap_auroc_by_group,
    bootstrap_auroc_difference_by_group,
    bootstrap_precision_by_group,
)
from persona_lens.traits.written import Kind

KINDS: tuple[Kind, ...] = ("ordinary", "mild", "overt", "opposite", "style")
LEVELS: tuple[Literal["overt", "mild"], ...] = ("overt", "mild")
DELTA, DELTA_OPPOSITE, RAW = "ΔP", "ΔP, vector from opposites", "raw projection"
FEW, ROWS, CONTRAST = "gradient, few rows", "gradient, all rows", "gradient, rows less ordinary"
FIRST, SECOND = "first judge", "second judge"
LOSS, LENGTH, RANDOM = "loss", "length", "random"
METHODS = (DELTA, DELTA_OPPOSITE, RAW, FEW, ROWS, CONTRAST, FIRST, SECOND, LOSS, LENGTH, RANDOM)
COMPUTED = METHODS[:8]
"""Methods that score a row for one trait; the others score it for all alike."""
# What is set against what, the first less the second.
PAIRS = (
    *((method, DELTA) for method in (FEW, ROWS, CONTRAST, FIRST, SECOND, RAW, LOSS)),
    (FIRST, CONTRAST), (SECOND, CONTRAST), (LOSS, CONTRAST),
)  # fmt: skip
OWN, MIXED = "the same questions", "the mixed file"
OTHERS = "other traits"
"""Rows of other traits, among those that a trait's rows are told from."""


@dataclass(frozen=True)
class FileRow:
    """A row of the mixed file: an answer to the trait's ``question_index``-th question, of a kind that was written."""

    trait: str
    question_index: int
    kind: Kind
    question: str
    response: str

    def to_conversation(self) -> dict[str, Any]:
        """Return it as it stands in a file."""
        turns = (("user", self.question), ("assistant", self.response))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}


@dataclass(frozen=True)
class Piece(Record):
    """Part of the work: scores by name, one a row; the seconds of one core that it took, and of how many rows."""

    values: dict[str, tuple[float | None, ...]]
    core_seconds: float
    n_rows: int


def name_column(trait: str, method: str) -> str:
    """Name a trait's scores by a method."""
    return f"{trait}: {method}"


def join_columns(
    traits: Sequence[str],
    rows: Sequence[FileRow],
    by_part: Mapping[str, Sequence[Piece]],
    judged: Mapping[str, Sequence[Piece]],
) -> dict[str, list[float | None]]:
    """Put every method's scores into the order of the file's rows.

    Args:
        traits: In the order of the pieces.
        rows: The file.
        by_part: By method, a piece for each trait's rows, as they follow each other in the file.
        judged: By method, a piece for each trait of all rows.
    """
    columns: dict[str, list[float | None]] = {}
    for pieces in by_part.values():
        for trait, piece in zip(traits, pieces, strict=True):
            places = [at for at, row in enumerate(rows) if row.trait == trait]
            for name, values in piece.values.items():
                column = columns.setdefault(name, [None] * len(rows))
                for at, value in zip(places, values, strict=True):
                    column[at] = value
    for pieces in judged.values():
        for piece in pieces:
            columns |= {name: list(values) for name, values in piece.values.items()}
    return columns


@dataclass(frozen=True)
class Cost(Record):
    """What a method takes, in seconds of one core.

    Args:
        row: A row for one trait.
        row_all: A row for all traits of the file.
        setup: Once a trait, before the first row: the vector's, or the references' gradients; None where it comes with
            the package, as the judges' fit does.
        n_rows: Rows that were timed; of a judge, once for each trait.
    """

    row: float
    row_all: float
    setup: float | None
    n_rows: int


@dataclass(frozen=True)
class Found(Record):
    """How well a method finds a trait's rows of one level among all rows without the trait.

    Args:
        auroc: Over questions.
        precision: Of as many rows as there are of that level, those with the highest scores: the share that are.
    """

    auroc: Interval
    precision: Interval


@dataclass(frozen=True)
class MethodFinding(Record):
    """What a method finds.

    Args:
        own: By level, among ordinary, opposite and styled answers to the same questions.
        mixed: By level, among all rows without the trait, those of other traits too.
        against: How it tells overt rows from each kind of row without the trait (AUROC).
        topic: How it tells the trait's ordinary rows from other traits' ordinary rows, which is what their questions
            do: 0.5 is deaf to them. Missing where there is no other trait.
    """

    own: dict[str, Found]
    mixed: dict[str, Found]
    against: dict[str, Interval]
    topic: Interval


@dataclass(frozen=True)
class TraitAttribution(Record):
    """What is found of one trait.

    Args:
        trait: Its name.
        layer: Zero-based block index at which ΔP is taken.
        validations: What was found of the first and of the second judge.
        n_left_out: Rows that one of the methods could not score.
        n_rows: By level, rows of that level, rows without the trait to the same questions, and all without it.
        methods: By name.
        differences: By pair of methods and level, the AUROC of the first less that of the second, on the same
            questions.
    """

    trait: str
    layer: int
    validations: tuple[JudgeValidation, ...]
    n_left_out: int
    n_rows: dict[str, tuple[int, int, int]]
    methods: dict[str, MethodFinding]
    differences: dict[str, dict[str, Interval]]

    def is_better(self, method: str, other: str, level: str) -> bool:
        """Whether a method is surely better than another."""
        return self.differences[name_pair(method, other)][level].low > 0

    def is_worse(self, method: str, other: str, level: str) -> bool:
        """Whether a method is surely worse than another."""
        return self.differences[name_pair(method, other)][level].high < 0


def name_pair(method: str, other: str) -> str:
    """Name a difference of two methods."""
    return f"{method} − {other}"


def compare_methods(
    trait: str,
    layer: int,
    validations: tuple[JudgeValidation, ...],
    rows: Sequence[FileRow],
    scores: Mapping[str, Sequence[float | None]],
) -> TraitAttribution:
    """Measure what each method finds of a trait, on the rows that all of them could score.

    Args:
        trait: Its name.
        layer: At which ΔP is taken.
        validations: Of the judges.
        rows: The file.
        scores: By method, one a row; None where it gives none.
    """
    whole = [at for at in range(len(rows)) if all(scores[method][at] is not None for method in METHODS)]
    kinds = {at: name_kind(rows[at], trait) for at in whole}
    without = [at for at in whole if kinds[at] not in LEVELS]
    others = {kind: [at for at in without if kinds[at] == kind] for kind in dict.fromkeys(kinds[at] for at in without)}
    own = [at for at in without if kinds[at] != OTHERS]
    elsewhere = [at for at in others.get(OTHERS, ()) if rows[at].kind == "ordinary"]
    shown = {level: [at for at in whole if kinds[at] == level] for level in LEVELS}

    def pick(method: str, places: Sequence[int]) -> Tensor:
        return torch.tensor([scores[method][at] for at in places], dtype=torch.float64)

    def group(places: Sequence[int]) -> list[tuple[str, int]]:
        return [(rows[at].trait, rows[at].question_index) for at in places]

    def separate(method: str, positive: Sequence[int], negative: Sequence[int]) -> Interval:
        sides = pick(method, positive), pick(method, negative)
        return bootstrap_auroc_by_group(*sides, group(positive), group(negative))

    def find(method: str, negative: Sequence[int]) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for level, places in shown.items():
            sides, groups = (pick(method, places), pick(method, negative)), (group(places), group(negative))
            found[level] = Found(separate(method, places, negative), bootstrap_precision_by_group(*sides, *groups))
        return found

    def compare(method: str, other: str) -> dict[str, Interval]:
        return {
            level: bootstrap_auroc_difference_by_group(
                pick(method, places),
                pick(method, own),
                pick(other, places),
                pick(other, own),
                group(places),
                group(own),
            )
            for level, places in shown.items()
        }

    return TraitAttribution(
        trait=trait,
        layer=layer,
        validations=validations,
        n_left_out=len(rows) - len(whole),
        n_rows={level: (len(places), len(own), len(without)) for level, places in shown.items()},
        methods={
            method: MethodFinding(
                find(method, own),
                find(method, without),
                {kind: separate(method, shown["overt"], places) for kind, places in others.items()},
                separate(method, others["ordinary"], elsewhere) if elsewhere else Interval.missing(),
            )
            for method in METHODS
        },
        differences={name_pair(method, other): compare(method, other) for method, other in PAIRS},
    )


def name_kind(row: FileRow, trait: str) -> str:
    """Return what a row is to a trait: its kind, or that it is of another trait."""
    return row.kind if row.trait == trait else OTHERS


def add_costs(
    by_part: Mapping[str, Sequence[Piece]],
    judged: Mapping[str, Sequence[Piece]],
    setup: Mapping[str, Sequence[Piece]],
    n_traits: int,
) -> dict[str, Cost]:
    """Add up what each method took, by its name.

    Args:
        by_part: By method, work on rows that serves all traits at once.
        judged: By method, work on rows for one trait at a time.
        setup: By method, once a trait.
        n_traits: In the file.
    """
    costs = {}
    for method, pieces in (*judged.items(), *by_part.items()):
        n_rows = sum(piece.n_rows for piece in pieces)
        row, own = sum(piece.core_seconds for piece in pieces) / n_rows, setup.get(method, ())
        costs[method] = Cost(
            row=row,
            row_all=row * n_traits if method in judged else row,
            setup=sum(piece.core_seconds for piece in own) / len(own) if own else 0.0 if method == LOSS else None,
            n_rows=n_rows,
        )
    return costs


@dataclass(frozen=True, eq=False, repr=False)
class Attributions(Result):
    """What experiments/attributions.py finds."""

    traits: tuple[TraitAttribution, ...]
    n_rows: int
    n_questions: int
    n_pairs: int
    n_few: int
    costs: dict[str, Cost]
    reference_bytes: int
    block_bytes: int

    @property
    def judges(self) -> dict[str, str]:
        """Each trait's first judge, with its verdict."""
        return {one.trait: name_judge(one.validations[0]) for one in self.traits if one.validations}

    def say_finding(self) -> str:
        """Say for which traits gradients and both judges are surely better or worse than ΔP."""
        gradients, judges = self._say_against(CONTRAST), self._say_against(FIRST, SECOND)
        return f"gradient similarity is surely better than ΔP {gradients};<br>both judges {judges}"

    def _say_against(self, *methods: str) -> str:
        """Say at which rows of which traits all of a few methods are surely better than ΔP, and at which worse."""
        better, worse = (
            {
                level: [
                    one.trait
                    for one in self.traits
                    if all(getattr(one, test)(method, DELTA, level) for method in methods)
                ]
                for level in LEVELS
            }
            for test in ("is_better", "is_worse")
        )
        said = ", ".join(f"at {level} rows of {_join(names) if names else 'none'}" for level, names in better.items())
        fell = [f"at {level} rows of {_join(names)}" for level, names in worse.items() if names]
        return said + (f", surely worse {' and '.join(fell)}" if fell else "")

    def plot(self) -> go.Figure:
        """Draw each method's AUROC and precision on the same questions, a column a trait, and below what it costs."""
        n = len(self.traits)
        heads = [f"{html.escape(one.trait)}: {what}" for what in ("found", "precision at k") for one in self.traits]
        figure = make_subplots(
            rows=3, cols=n, specs=[[{}] * n, [{}] * n, [{"colspan": n}, *[None] * (n - 1)]],
            subplot_titles=[*heads, "what it costs"], row_heights=[0.41, 0.41, 0.18], vertical_spacing=0.08,
            horizontal_spacing=0.03,
        )  # fmt: skip
        names = list(METHODS)[::-1]
        looks = {"overt": (COLORS[3], "circle"), "mild": (COLORS[2], "diamond")}
        for column, one in enumerate(self.traits, start=1):
            for line, measure in enumerate(("auroc", "precision"), start=1):
                for at, level in enumerate(LEVELS):
                    shown = [getattr(one.methods[name].own[level], measure) for name in names]
                    places = [place + 0.14 - 0.28 * at for place in range(len(names))]
                    add_intervals(figure, column, places, shown, *looks[level], f"{level} rows", line=line)
                n_level, n_own, _ = one.n_rows["overt"]
                chance = 0.5 if measure == "auroc" else n_level / (n_level + n_own)
                figure.add_vline(x=chance, line={"color": GREY, "dash": "dash", "width": 1}, row=line, col=column)
                figure.update_yaxes(
                    tickvals=list(range(len(names))), ticktext=names if column == 1 else [""] * len(names),
                    row=line, col=column,
                )  # fmt: skip
                label = "AUROC, the same questions" if line == 1 else "share of the top k that are"
                figure.update_xaxes(title={"text": label, "standoff": 2}, range=[-0.03, 1.03], row=line, col=column)
        for index, trace in enumerate(figure.data):
            trace.showlegend = index < len(LEVELS)
        methods = [method for method in METHODS if method in self.costs][::-1]
        seconds = [self.costs[method].row_all for method in methods]
        figure.add_trace(
            go.Bar(
                x=seconds, y=methods, orientation="h", showlegend=False, text=[f"{one:.2g}" for one in seconds],
                marker={"color": COLORS[0], "line": {"color": INK, "width": 1}}, textposition="outside",
                cliponaxis=False,
            ),
            row=3,
            col=1,
        )  # fmt: skip
        cost = f"seconds of one core a row, for all {n} traits"
        figure.update_xaxes(title={"text": cost, "standoff": 2}, row=3, col=1)
        layers = ", ".join(f"{html.escape(one.trait)} {one.layer}" for one in self.traits)
        verdicts = "; ".join(_say_judges(one) for one in self.traits if one.validations)
        subtitle = (
            f"{self.model_name}; {self.n_questions} questions a trait, overt or mild answers among ordinary, opposite "
            f"and styled ones; vectors and<br>gradients from the same {self.n_pairs} training pairs (few: {self.n_few} "
            f"rows); ΔP at layer {layers}; judges, fitted on all these kinds:<br>{verdicts}; k: as many as there are; "
            "dashed: chance; 95 % over questions, uncorrected"
        )
        lay_out(figure, self.say_finding(), subtitle, width=1250, height=1350, bottom=110, legend=-0.06)
        figure.update_layout(margin={"l": 210})
        return figure

    def to_markdown(self) -> str:
        """Write what each method finds, how it tells overt rows from each kind, the differences and the costs."""
        lines = [self._say_setting(), "", *_list_found(self.traits), *_list_contrasts(self.traits)]
        lines += ["", "| trait | AUROC of the one less the other's | overt | mild |", "|---|---|---|---|"]
        for one in self.traits:
            for pair, found in one.differences.items():
                lines.append(f"| {one.trait} | {pair} | {' | '.join(say(found[level]) for level in LEVELS)} |")
        heads = ("method", "core-seconds a row, one trait", f"all {len(self.traits)}", "once a trait", "rows timed")
        lines += ["", f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
        for name, cost in self.costs.items():
            once = "comes with the package" if cost.setup is None else f"{cost.setup:.1f}" if cost.setup else "–"
            lines.append(f"| {name} | {cost.row:.3f} | {cost.row_all:.3f} | {once} | {cost.n_rows} |")
        total = sum(cost.row * cost.n_rows + (cost.setup or 0) * len(self.traits) for cost in self.costs.values()) / 60
        lines += [
            "", f"A gradient's reference takes {self.reference_bytes / 1e6:.1f} MB, and a row's gradient, while it is "
            f"taken, {self.block_bytes / 1e6:.0f} MB. All of it, without the few rows' references and the judges' fit: "
            f"{total:.0f} minutes of one core.", "",
            "![What each way of screening finds](../../figures/attributions.png)", "",
        ]  # fmt: skip
        return "\n".join(lines)

    def _say_setting(self) -> str:
        """Say what was read from what, and which judge is valid for what."""
        verdicts = "; ".join(_say_judges(one) for one in self.traits if one.validations)
        n_left_out = ", ".join(f"{one.trait} {one.n_left_out}" for one in self.traits)
        return (
            f"{self.n_rows} rows, {self.n_questions} questions a trait; vectors and gradients from the same "
            f"{self.n_pairs} pairs of the training half, the *few rows* are {self.n_few} of them. Judges, first and "
            f"second: {verdicts}. Rows that a method could not score, left out for all: {n_left_out}."
        )


def _list_found(traits: Sequence[TraitAttribution]) -> list[str]:
    lines = [
        f"| trait | method | overt, {OWN}: AUROC | precision at k | mild: AUROC | precision at k | overt, {MIXED}: "
        "AUROC | precision at k | mild: AUROC | precision at k |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in traits:
        for name, finding in one.methods.items():
            places = [found[level] for found in (finding.own, finding.mixed) for level in LEVELS]
            cells = [say(value) for found in places for value in (found.auroc, found.precision)]
            lines.append(f"| {one.trait} | {name} | {' | '.join(cells)} |")
    return lines


def _list_contrasts(traits: Sequence[TraitAttribution]) -> list[str]:
    kinds = list(traits[0].methods[DELTA].against)
    heads = [f"overt from {kind}{'' if kind == OTHERS else ' ones'}" for kind in kinds]
    lines = ["", "One kind of row at a time (AUROC); the last column is what topic alone does:", "",
             f"| trait | method | {' | '.join(heads)} | its ordinary rows from theirs |",
             f"|---|---|{'---|' * (len(kinds) + 1)}"]  # fmt: skip
    for one in traits:
        for name, finding in one.methods.items():
            cells = [*(say(finding.against[kind]) for kind in kinds), say(finding.topic)]
            lines.append(f"| {one.trait} | {name} | {' | '.join(cells)} |")
    return lines


def name_judge(validation: JudgeValidation) -> str:
    """Name a judge with the verdict on it, as a validated judge does itself."""
    return f"{validation.judge}, {validation.verdict} for {validation.trait}"


def _say_judges(one: TraitAttribution) -> str:
    """Say of a trait's judges which is valid."""
    return f"{html.escape(one.trait)} {', '.join(judge.verdict for judge in one.validations)}"


def _join(names: Sequence[str]) -> str:
    *most, last = map(html.escape, names)
    return f"{', '.join(most)} and {last}" if most else last
