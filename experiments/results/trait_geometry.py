"""How trait vectors lie to one another, and what they write."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from persona_lens.files import write_bytes_atomically
from persona_lens.plots.style import INK, lay_out
from persona_lens.reproduction.figures import Result
from persona_lens.vectors.persona_vector import ExtractionCounts


@dataclass(frozen=True)
class WrittenTokens:
    """Tokens that a direction promotes and suppresses most at a layer, with standard deviations over the vocabulary."""

    layer: int
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TraitVector:
    """A trait's vector: where it is from, and by layer its norm and split-half cosine (None where not measured)."""

    trait: str
    source: str
    counts: ExtractionCounts
    provenance: dict[str, Any]
    split_half_cosine: tuple[float, ...] | None
    norms: tuple[float, ...]
    tokens: tuple[WrittenTokens, ...]


@dataclass(frozen=True, eq=False)
class TraitGeometry(Result):
    """What experiments/trait_geometry.py finds; ``cosines`` by layer, trait and trait."""

    layer: int
    d_model: int
    traits: tuple[TraitVector, ...]
    left_out: dict[str, str]
    cosines: tuple[tuple[tuple[float, ...], ...], ...]

    def plot(self) -> go.Figure:
        """Draw the cosines between traits at one layer and over layers, and each vector's split-half stability.

        On the diagonal stands the cosine between the two halves of a trait's questions, not 1: what a vector has in
        common with itself.
        """
        names = [html.escape(row.trait) for row in self.traits]
        layer, n = self.layer, len(names)
        cosines = torch.tensor(self.cosines)
        halves = [row.split_half_cosine for row in self.traits]
        mean = cosines.mean(dim=0)
        panels = []
        for matrix, own in (
            (cosines[layer], [None if h is None else h[layer] for h in halves]),
            (mean, [None if h is None else sum(h) / len(h) for h in halves]),
        ):
            panels.append([[own[i] if i == j else float(matrix[i, j]) for j in range(n)] for i in range(n)])
        figure = make_subplots(
            rows=2, cols=2, specs=[[{}, {}], [{"colspan": 2}, None]], row_heights=[0.6, 0.4], shared_yaxes=True,
            vertical_spacing=0.17, horizontal_spacing=0.02,
            subplot_titles=(f"cosine at layer {layer}", f"mean over {len(cosines)} layers", "split-half stability"),
        )  # fmt: skip
        for column, panel in enumerate(panels, start=1):
            figure.add_trace(
                go.Heatmap(
                    x=names, y=names, z=panel, zmin=-1, zmax=1, colorscale="PuOr", reversescale=True,
                    text=[["–" if v is None else f"{v:.2f}" for v in row] for row in panel],
                    texttemplate="%{text}", textfont={"size": 10}, showscale=column == 1,
                    colorbar={"title": "cosine", "len": 0.55, "y": 0.75},
                    hovertemplate="%{y} · %{x}: %{text}<extra></extra>",
                ),
                row=1, col=column,
            )  # fmt: skip
        figure.add_trace(
            go.Heatmap(
                x=list(range(len(cosines))), y=names, z=[h or [None] * len(cosines) for h in halves], zmin=0, zmax=1,
                colorscale="Cividis", colorbar={"title": "split-half<br>cosine", "len": 0.33, "y": 0.16},
                hovertemplate="%{y}, layer %{x}: %{z:.2f}<extra></extra>",
            ),
            row=2, col=1,
        )  # fmt: skip
        figure.update_yaxes(autorange="reversed")
        figure.update_yaxes(title_text="trait", col=1)
        figure.update_xaxes(title_text="trait", row=1)
        figure.update_xaxes(title_text="layer (zero-based block)", row=2, col=1)
        n_pairs = n * (n - 1) // 2
        # Of isotropic directions, for all pairs at once (Bonferroni).
        band = NormalDist().inv_cdf(1 - 0.025 / n_pairs) / math.sqrt(self.d_model)
        left_out = "".join(f"; {html.escape(name)} left out: no vector" for name in self.left_out)
        subtitle = (
            f"{self.model_name}; diagonal: cosine between two halves of the trait's own questions; all pairs of "
            f"isotropic directions, a weak null, lie within ±{band:.2f} in 95 % of cases{left_out}"
        )
        pairs = [(float(cosines[layer, i, j]), i, j) for i in range(n) for j in range(i)]
        beyond = sum(abs(value) > band for value, *_ in pairs)

        def say_pair(value: float, i: int, j: int) -> str:
            own = [halves[k] for k in (i, j)]
            both = [h[layer] for h in own if h is not None]
            # What the cosine would be if both vectors agreed with themselves (Spearman's correction).
            corrected = value / math.sqrt(both[0] * both[1]) if len(both) == 2 and min(both) > 0 else math.nan
            more = f" ({corrected:.2f} if both were measured without noise)" if -1 <= corrected <= 1 else ""
            return f"{names[i]} · {names[j]} {value:.2f}{more}"

        finding = (
            f"{beyond} of {len(pairs)} pairs of traits lie closer or further than isotropic directions (layer {layer})"
            f";<br>highest cosine {say_pair(*max(pairs))}, lowest {say_pair(*min(pairs))}"
        )
        lay_out(figure, finding, subtitle, width=max(900, 300 + 80 * n), height=520 + 56 * n)
        return figure

    def write_pages(self, folder: Path, name: str) -> dict[str, go.Figure]:
        """Write the figure's page, and the tokens that each direction writes as NAME_tokens.html."""
        write_bytes_atomically(folder / f"{name}_tokens.html", self.list_written_tokens().encode())
        return super().write_pages(folder, name)

    def list_written_tokens(self) -> str:
        """Write the tokens that each trait's direction promotes and suppresses as an HTML page, quoted and escaped."""

        def quote(pairs: Sequence[tuple[str, float]]) -> str:
            return " ".join(f"<code>{html.escape(repr(token))}</code>&nbsp;{value:+.1f}" for token, value in pairs)

        rows = "\n".join(
            f"<tr><th>{html.escape(row.trait)}</th><td>{one.layer}</td><td>{quote(one.promoted)}</td>"
            f"<td>{quote(one.suppressed)}</td></tr>"
            for row in self.traits
            for one in row.tokens
        )
        return (
            '<!DOCTYPE html><meta charset="utf-8"><title>Tokens written by trait directions</title>'
            f"<style>body{{font:14px sans-serif;max-width:80em;color:{INK}}}"
            "th,td{border-bottom:1px solid #CCC;padding:4px;text-align:left;vertical-align:top}"
            "code{background:#EEE}</style>"
            f"<h1>What each trait's direction writes through the unembedding of {self.model_name}</h1>"
            "<p>The direction v of a layer, read as if no later layer changed it: (f(v) − f(−v)) / 2, where f is the "
            "final norm with its gain, then the unembedding. Numbers: standard deviations over the vocabulary.</p>"
            "<table><tr><th>trait</th><th>layer</th><th>promoted</th><th>suppressed</th></tr>\n"
            f"{rows}\n</table>\n"
        )
