"""Steering one trait by vectors of two sources, read by several judges, against everything simpler."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.evaluation import ConditionScores
from persona_lens.judges import JudgeValidation
from persona_lens.plots.style import COLORS, INK, add_intervals, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, bootstrap_auroc_by_group
from persona_lens.statistics.crossed import mean_over_directions_interval

SHOWPIECE = "humorous"
"""Its pairs open the README: a trait whose steering both judges see, and in which a reader sees the difference."""

_AGAINST_UNSTEERED = (
    ("written vector", "unsteered"),
    ("sampled vector", "unsteered"),
    ("system prompt", "unsteered"),
    ("written vector, away", "unsteered"),
    ("sampled vector, away", "unsteered"),
)
_AGAINST_NULLS = tuple(
    (source, null)
    for source in ("written vector", "sampled vector")
    for null in ("shuffled labels", "random, equal coherence", "other traits")
)


@dataclass(frozen=True)
class Setting(Record):
    """A layer and step size of one source, as they were chosen on other questions.

    ``step`` is the length of what is added, as a share of the typical length of an ordinary response's mean.
    """

    source: str
    layer: int
    step: float
    coefficient: float
    score: float
    coherence: float
    split_half_cosine: float
    n_pairs: int
    pairs_kept_by: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class SteeringEvidence(Result):
    """What experiments/steering_evidence.py finds.

    ``scores`` are by judge's name, as those of ``responses``; ``nulls`` those of random directions, one rollout each.
    """

    trait: str
    settings: tuple[Setting, ...]
    validations: tuple[JudgeValidation, ...]
    responses: ConditionScores
    scores: dict[str, Float[Tensor, "condition question rollout"]]
    nulls: dict[str, ConditionScores]
    null_scores: dict[str, dict[str, Float[Tensor, "direction question rollout"]]]
    null_step: float

    def auroc(self, judge: str, condition: str, other: str) -> Interval:
        """Return how surely a judge tells a condition's responses from another's, over questions."""
        first, second = self._scores(judge, condition), self._scores(judge, other)
        groups = [[q for q, row in enumerate(side) for one in row if not one.isnan()] for side in (first, second)]
        values = [side[~side.isnan()] for side in (first, second)]
        if min(map(len, values)) < 2:
            return Interval.missing()
        return bootstrap_auroc_by_group(values[0], values[1], groups[0], groups[1])

    def _scores(self, judge: str, condition: str) -> Float[Tensor, "question response"]:
        """Return a condition's scores, question by question; ``other traits`` and ``random …`` are several pooled."""
        names = self.responses.conditions
        if condition in self.nulls:
            found = self.null_scores[condition][judge]
        elif condition == "other traits":
            found = self.scores[judge][[i for i, name in enumerate(names) if name.startswith("vector of ")]]
        else:
            found = self.scores[judge][[names.index(condition)]]
        return torch.cat(list(found), dim=-1)

    def above(self, judge: str, condition: str, null: str) -> Interval:
        """Return by how many points steering outscores a null's directions; directions and questions are both units."""
        against = self.null_scores[null][judge].nanmean(dim=-1)
        steered = self.scores[judge][self.responses.conditions.index(condition)].nanmean(dim=-1)
        return mean_over_directions_interval(steered[: against.shape[1]] - against)

    def show_pairs(self, n: int = 5) -> list[tuple[str, str, str]]:
        """Return the questions, with both responses, in which the confirming judge sees steering raise the trait most.

        The confirming judge is the first that is valid for the trait, other than the one that chose the setting.
        """
        _, *others = self.scores
        names = [one for one in others if self._verdicts[one] == "valid"] or others
        both = [self.responses.conditions.index(one) for one in ("unsteered", "written vector")]
        plain, steered = (self.scores[names[0]][one, :, 0] for one in both)
        order = (steered - plain).nan_to_num(-1e9).argsort(descending=True).tolist()[:n]
        texts = [self.responses.responses[one] for one in both]
        return [(self.responses.questions[q], texts[0][q][0], texts[1][q][0]) for q in order]

    @property
    def _verdicts(self) -> dict[str, str]:
        return {name: one.verdict for name, one in zip(self.scores, self.validations, strict=True)}

    def coherence(self, condition: str) -> float:
        """Return a condition's mean coherence."""
        if condition in self.nulls:
            return float(self.nulls[condition].coherences.nanmean())
        return float(self.responses.coherences[self.responses.conditions.index(condition)].nanmean())

    def to_markdown(self) -> str:
        """Write the table of comparisons × judges, with what was chosen."""
        head = " | ".join(self.scores)
        lines = [f"### {self.trait}", "", f"| AUROC of | {head} |", f"|---|{'---|' * len(self.scores)}"]
        for first, second in (*_AGAINST_UNSTEERED, *_AGAINST_NULLS):
            found = " | ".join(str(self.auroc(judge, first, second)) for judge in self.scores)
            lines.append(f"| {first} v {second} | {found} |")
        lines += ["", f"| points above | {head} |", f"|---|{'---|' * len(self.scores)}"]
        for source in ("written vector", "sampled vector"):
            for null in self.nulls:
                found = " | ".join(f"{self.above(judge, source, null):.0f}" for judge in self.scores)
                lines.append(f"| {source} less {null} | {found} |")
        chosen = "; ".join(
            f"{one.source}: layer {one.layer}, step {one.step:g}, split-half cosine {one.split_half_cosine:.2f}, "
            f"{one.n_pairs} pairs"
            for one in self.settings
        )
        shown = ("unsteered", "written vector", "sampled vector", *self.nulls)
        coherence = ", ".join(f"{name} {self.coherence(name):.0f}" for name in shown)
        said = "The five questions, of all, in which the confirming judge sees the written vector raise it most:"
        pairs = ["", said, "", self.pairs_to_markdown()]
        image = f"![{self.trait}, by three judges](../../figures/steering_evidence_{self.trait}.png)"
        pairs += ["", image]
        return "\n".join([*lines, "", f"Chosen: {chosen}. Mean coherence: {coherence}.", *pairs, ""])

    def pairs_to_markdown(self) -> str:
        """Write the pairs of :meth:`show_pairs` as a table."""
        lines = [f"| {' | '.join(map(_in_cell, pair))} |" for pair in self.show_pairs()]
        return "\n".join(["| question | unsteered | steered |", "|---|---|---|", *lines])

    def plot(self) -> go.Figure:
        """Draw each judge's AUROC of conditions against the unsteered model, and of steering against every null."""
        figure = make_subplots(
            rows=1, cols=2, horizontal_spacing=0.25, subplot_titles=("against the unsteered model", "against nulls")
        )
        for column, pairs in enumerate((_AGAINST_UNSTEERED, _AGAINST_NULLS), start=1):
            names = [a if column == 1 else f"{a.removesuffix(' vector')} v {b}" for a, b in pairs]
            for index, judge in enumerate(self.scores):
                # Side by side, as three bars on one line hide each other.
                places = [place + 0.24 * (index - 1) for place in range(len(names))]
                found = [self.auroc(judge, a, b) for a, b in pairs]
                is_valid = self._verdicts[judge] == "valid"
                symbol = ("circle", "diamond", "square")[index % 3] + ("" if is_valid else "-open")
                add_intervals(figure, column, places, found, COLORS[(2, 3, 1)[index % 3]], symbol, html.escape(judge))
            figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, row=1, col=column)
            figure.add_vline(x=0.5, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=column)
        figure.update_traces(showlegend=False, selector=lambda trace: trace.xaxis == "x2")
        figure.update_xaxes(title_text="AUROC", range=[-0.03, 1.03])
        figure.update_yaxes(autorange="reversed")
        title = f"{html.escape(self.trait)}: {self.say_finding()}"
        chosen = "; ".join(f"{one.source}: layer {one.layer}, step {one.step:g}" for one in self.settings)
        subtitle = (
            f"{self.model_name}; {len(self.responses.questions)} questions that chose nothing × "
            f"{self.responses.scores.shape[-1]} responses; {chosen}; coherence unsteered "
            f"{self.coherence('unsteered'):.0f}, written {self.coherence('written vector'):.0f}, sampled "
            f"{self.coherence('sampled vector'):.0f}<br>bars: 95 % bootstrap over questions; filled: judge valid "
            "for this trait"
        )
        lay_out(figure, title, subtitle, width=1250, height=680, top=165, bottom=110, legend=-0.14)
        figure.update_layout(margin={"l": 170})
        return figure

    def say_finding(self) -> str:
        """Say what all valid judges see, and what they do not."""
        valid = [judge for judge in self.scores if self._verdicts[judge] == "valid"]
        if not valid:
            return "no judge is valid here, so nothing is claimed"
        by = f"{len(valid)} valid judge{'s' if len(valid) > 1 else ''}"
        seen = [
            name
            for name in ("written vector", "sampled vector")
            if all(self.auroc(judge, name, "unsteered").low > 0.5 for judge in valid)
        ]
        if not seen:
            return f"no vector surely raises it for {by}"
        above = [
            name
            for name in seen
            if all(self.auroc(judge, name, "random, equal coherence").low > 0.5 for judge in valid)
        ]
        tail = f"above random directions of about equal coherence: {' and '.join(above) or 'neither'}"
        return f"raised for {by} by the {' and the '.join(seen)}<br>{tail}"


def summarize(found: Sequence[SteeringEvidence]) -> str:
    """Write a short table of all traits: what the two judges that may be believed most see of the written vector."""
    compared = (
        ("written vector", "unsteered"),
        ("written vector", "random, equal coherence"),
        ("written vector", "other traits"),
        ("written vector, away", "unsteered"),
        ("system prompt", "unsteered"),
    )
    head = " | ".join(f"{a.removeprefix('written vector, ')} v {b}" for a, b in compared)
    lines = [f"| trait, judge | {head} |", f"|---|{'---|' * len(compared)}"]
    for one in found:
        for judge in list(one.scores)[:2]:
            name = judge.removesuffix(f" for {one.trait}").removeprefix("embedding judge ")
            cells = " | ".join(str(one.auroc(judge, a, b)) for a, b in compared)
            lines.append(f"| {one.trait}, {name} | {cells} |")
    return "\n".join(lines)


def _in_cell(text: str) -> str:
    """Return a text as one cell of a Markdown table, in which nothing of it is markup."""
    return html.escape(" ".join(text.split())).replace("|", "\\|").replace("`", "\\`").replace("*", "\\*")
