"""Steering one trait by vectors of two sources, read by several judges, against everything simpler."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.plots.style import COLORS, INK, add_intervals, lay_out
from persona_lens.reproduction.comparison import EQUAL_COHERENCE, OTHER_TRAITS, SHUFFLED_LABELS, Comparison, Setting

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
    for null in (SHUFFLED_LABELS, EQUAL_COHERENCE, OTHER_TRAITS)
)


@dataclass(frozen=True, eq=False, repr=False)
class SteeringEvidence(Comparison):
    """What experiments/steering_evidence.py finds: vectors of two sources, each at the setting chosen for it."""

    settings: tuple[Setting, ...]

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
                is_valid = self.verdicts[judge] == "valid"
                symbol = ("circle", "diamond", "square")[index % 3] + ("" if is_valid else "-open")
                add_intervals(figure, column, places, found, COLORS[(2, 3, 1)[index % 3]], symbol, html.escape(judge))
            figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, row=1, col=column)
            figure.add_vline(x=0.5, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=column)
        figure.update_traces(showlegend=False, selector=lambda trace: trace.xaxis == "x2")
        figure.update_xaxes(title_text="AUROC", range=[-0.03, 1.03])
        figure.update_yaxes(autorange="reversed")
        title = f"{html.escape(self.trait)}: {self.say_finding()}"
        chosen = "; ".join(f"{one.source}: layer {one.layer}, step {one.step:g}" for one in self.settings)
        n_rollouts = self.responses.scores.shape[-1]
        subtitle = (
            f"{self.model_name}; {len(self.responses.questions)} questions that chose nothing × "
            f"{n_rollouts} response{'' if n_rollouts == 1 else 's'}; {chosen}; coherence unsteered "
            f"{self.coherence('unsteered'):.0f}, written {self.coherence('written vector'):.0f}, sampled "
            f"{self.coherence('sampled vector'):.0f}<br>bars: 95 % bootstrap over questions; filled: judge valid "
            "for this trait"
        )
        lay_out(figure, title, subtitle, width=1250, height=680, bottom=110, legend=-0.14)
        figure.update_layout(margin={"l": 170})
        return figure

    def say_finding(self) -> str:
        """Say what all valid judges see, and what they do not."""
        valid = [judge for judge in self.scores if self.verdicts[judge] == "valid"]
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
        above = [name for name in seen if all(self.auroc(judge, name, EQUAL_COHERENCE).low > 0.5 for judge in valid)]
        tail = f"above random directions of about equal coherence: {' and '.join(above) or 'neither'}"
        return f"raised for {by} by the {' and the '.join(seen)},<br>{tail}"


def summarize(found: Sequence[SteeringEvidence]) -> str:
    """Write a short table of all traits: what the two judges that may be believed most see of the written vector."""
    compared = (
        ("written vector", "unsteered"),
        ("written vector", EQUAL_COHERENCE),
        ("written vector", OTHER_TRAITS),
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
