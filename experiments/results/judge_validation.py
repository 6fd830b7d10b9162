"""Judges measured on texts of known nature, trait by trait."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from persona_lens.judges import JudgeValidation
from persona_lens.plots.validation import plot_validations
from persona_lens.reproduction.figures import Result

COLUMNS = ("overt v opposite", "overt v ordinary", "mild v ordinary", "100% shuffled v ordinary", "hot v cool",
           "style v ordinary")  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class JudgeValidations(Result):
    """What experiments/judge_validation.py finds."""

    validations: tuple[JudgeValidation, ...]

    def plot(self) -> go.Figure:
        """Draw every judge's AUROCs, a panel a trait."""
        return plot_validations(self.validations)

    def to_markdown(self) -> str:
        """Write the table judge × trait, with 95 % intervals over questions."""
        head = f"| trait | judge | {' | '.join(COLUMNS)} | verdict |\n|---|---|{'---|' * len(COLUMNS)}---|\n"
        lines = [
            f"| {one.trait} | {one.judge} | {' | '.join(str(one[name]) for name in COLUMNS)} | {one.verdict} |"
            for one in self.validations
        ]
        return head + "\n".join(lines) + "\n"
