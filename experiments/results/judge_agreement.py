"""How far judges agree on the responses of a layer sweep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from persona_lens.judges.panel import Agreement, PanelResult
from persona_lens.plots.agreement import plot_agreement
from persona_lens.plots.style import say
from persona_lens.reproduction.figures import Result


@dataclass(frozen=True, eq=False)
class JudgeAgreement(Result):
    """What experiments/judge_agreement.py finds; ``counts`` by judge, of scores and of reasons for none."""

    trait: str
    counts: dict[str, dict[str, int]]
    agreement: tuple[Agreement, ...]
    panel: PanelResult

    def plot(self) -> go.Figure:
        """Draw the agreement of every judge with every other."""
        return plot_agreement(self.panel, self.trait)


def agreements_to_markdown(results: Sequence[JudgeAgreement]) -> str:
    """Write how far each two judges agree, a row a pair, and what had no score; then the figures."""
    lines = [
        "| trait | judge | and | Spearman | clear pairs of the first ordered alike by the second |",
        "|---|---|---|---|---|",
    ]
    silent = []
    for result in results:
        pairs = {(row.first, row.second): row for row in result.agreement}
        for first, second in itertools.combinations(result.panel.judges, 2):
            row = pairs[first, second]
            if row.spearman.is_missing:
                continue
            alike = "–" if row.pairwise is None else f"{100 * row.pairwise:.0f} % of {row.n_clear_pairs}"
            lines.append(f"| {result.trait} | {first} | {second} | {say(row.spearman)} | {alike} |")
        silent += [
            f"{result.trait}: the {judge} gave {counts.get('scored', 0)} scores of {sum(counts.values())} asked for."
            for judge, counts in result.counts.items()
            if counts.get("scored", 0) < sum(counts.values())
        ]
    figures = [
        f"![Agreement of the judges on {one.trait}](../../figures/judge_agreement_{one.trait}.png)" for one in results
    ]
    return "\n".join([*lines, "", *silent, "", *figures])
