"""How far two halves of a trait's pairs give the same vector, by how many pairs there are."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from persona_lens.plots.style import COLORS, INK, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import JudgeNote

GOAL = 0.8
"""Two halves that agree so far give a whole whose cosine with the vector of endless pairs is about 0.94."""


@dataclass(frozen=True)
class Stability(Record):
    """A vector's cosine between two halves of its questions, at each layer; none where a half kept no pair."""

    source: str
    pairs: int
    kept: int
    split_half: tuple[float, ...]

    def list_layers(self) -> list[int]:
        """Return the layers at which the halves agree as far as is wanted."""
        return [layer for layer, cosine in enumerate(self.split_half) if cosine >= GOAL]


@dataclass(frozen=True, eq=False)
class VectorStability(Result):
    """What experiments/vector_stability.py finds; the judge kept or dropped the sampled pairs."""

    trait: str
    judge: JudgeNote
    found: tuple[Stability, ...]

    @property
    def judges(self) -> dict[str, str]:
        """The judge that kept pairs."""
        return {self.trait: self.judge.name}

    def plot(self) -> go.Figure:
        """Draw each vector's split-half cosine over layers."""
        figure = go.Figure()
        for index, one in enumerate(self.found):
            is_written = one.source.startswith("written")
            figure.add_trace(
                go.Scatter(
                    x=list(range(len(one.split_half))), y=list(one.split_half), mode="lines+markers",
                    name=f"{one.source}: {one.kept} of {one.pairs} pairs kept",
                    line={
                        "color": INK if is_written else COLORS[index % len(COLORS)],
                        "dash": "dash" if is_written else "solid",
                    },
                )
            )  # fmt: skip
        figure.add_hline(y=GOAL, line={"color": INK, "dash": "dot", "width": 1})
        figure.update_xaxes(title_text="layer (zero-based block; the paper's layer is one higher)")
        figure.update_yaxes(title_text="cosine between halves of the questions", range=[-0.35, 1.02])
        subtitle = (
            f"{self.model_name}; halves: every other extraction question (one split, so without an interval)<br>"
            f"pairs kept by the {self.judge.name}"
        )
        lay_out(figure, self.say_finding(), subtitle, width=950, height=620, bottom=130, legend=-0.2)
        return figure

    def say_finding(self) -> str:
        """Say at how many layers each vector's halves agree, the least and the most sampled one and the written one."""
        sampled = [one for one in self.found if not one.source.startswith("written")]
        shown = [*dict.fromkeys((sampled[0], sampled[-1])), *(one for one in self.found if one not in sampled)]
        n_layers = self.config["model"]["n_layers"]
        said = [f"{len(one.list_layers())} of {n_layers} layers ({one.source}, {one.kept} pairs)" for one in shown]
        return f"{html.escape(self.trait)}: halves agree to {GOAL:g} at {', '.join(said)}"


def stability_to_markdown(results: Sequence[VectorStability]) -> str:
    """Write at which layers halves agree, a row a vector; then the figures."""
    lines = [
        f"| trait | vector | pairs kept | split-half cosine: lowest to highest | at least {GOAL:g} at layers |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        for one in result.found:
            span = f"{min(one.split_half):.2f} to {max(one.split_half):.2f}" if one.split_half else "–"
            layers = _say_ranges(one.list_layers()) or "none"
            lines.append(f"| {result.trait} | {one.source} | {one.kept} of {one.pairs} | {span} | {layers} |")
    figures = [f"![Stability, {one.trait}](../../figures/vector_stability_{one.trait}.png)" for one in results]
    return "\n".join([*lines, "", *figures])


def _say_ranges(layers: Sequence[int]) -> str:
    """Write runs of neighbours as ranges.

    >>> _say_ranges([1, 2, 3, 7])
    '1–3, 7'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
