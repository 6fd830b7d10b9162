"""Screened data: distributions by trait, and a report for people who did not run it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.plots.style import COLORS, INK, lay_out

if TYPE_CHECKING:
    from persona_lens.screening.screening import Screening

_N_EXTREME = 10
_N_BINS = 60
_N_BAD = 20
_N_SHOWN = 600  # characters of a text
_TURNS = {
    "first": "Of a conversation, the first answer was screened",
    "last": "Of a conversation, the last answer was screened",
    "all": "Of a conversation, every answer was screened, and a row's ΔP is that of its highest",
}
_BASES = {"sampled": "the model's own greedy response", "last_prompt": "the prompt's last token"}
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1200px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:.5em 0 2em}td,th{border:1px solid #ccc;padding:.35em .6em;text-align:left;"
    "vertical-align:top}td.text{max-width:24em;white-space:pre-wrap;overflow-wrap:anywhere}td.n{text-align:right}"
    "td{overflow-wrap:anywhere}"
)


@checked
def plot_screening(screening: Screening, thresholds: Mapping[str, float]) -> go.Figure:
    """Draw the distribution of ΔP for each trait, one panel a trait, with its threshold if there is one.

    Args:
        screening: The scores.
        thresholds: By trait, in residual-stream units.

    Reference:
        Persona Vectors (arXiv 2507.21509), Figure 9.
    """
    traits = screening.traits
    figure = make_subplots(rows=1, cols=len(traits), subplot_titles=[html.escape(trait) for trait in traits])
    for column, trait in enumerate(traits, start=1):
        # Counted here, so that the page stays small whatever the number of conversations.
        numbers, edges = np.histogram(screening.values(trait).numpy(), bins=_N_BINS)
        bars = go.Bar(
            x=(edges[1:] + edges[:-1]) / 2, y=numbers, width=np.diff(edges), showlegend=False,
            marker={"color": COLORS[(column + 1) % len(COLORS)]},
        )  # fmt: skip
        figure.add_trace(bars, row=1, col=column)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
        if trait in thresholds:
            figure.add_vline(
                x=thresholds[trait], line={"color": INK, "dash": "dash"}, annotation_text="threshold", row=1, col=column
            )
        layer = screening.config["layers"][trait]
        figure.update_xaxes(title_text=f"ΔP at layer {layer} (residual-stream units)", row=1, col=column)
    figure.update_yaxes(title_text="conversations", row=1, col=1)
    shown = "; ".join(f"{html.escape(trait)} {screening.measure(trait)}" for trait in traits)
    n_samples = screening.counts["scored"] - screening.n_without_base
    base = _BASES[screening.config["settings"]["base"]]
    subtitle = (
        f"{html.escape(screening.config['model']['name'])}, {n_samples} conversations; response less {base}, "
        "along the unit vector; mean with 95 % bootstrap over conversations"
    )
    lay_out(figure, f"projection difference ΔP: {shown}", subtitle, width=max(700, 390 * len(traits)), height=520)
    figure.update_layout(margin={"t": 120})
    return figure


@checked
def report_screening(screening: Screening, thresholds: Mapping[str, float], held: Mapping[str, int]) -> str:
    """Return a screening as one HTML page that needs neither network nor code: what was found, and in which texts.

    Args:
        screening: The scores.
        thresholds: By trait, the highest ΔP that stays; empty if nothing was held back.
        held: Rows held back, by reason.

    Returns:
        The page. All texts of the data are escaped.
    """
    model = screening.config["model"]["name"]
    lengths = screening.config["norms"]
    figure = plot_screening(screening, thresholds).to_html(include_plotlyjs=True, full_html=False, div_id="screening")
    counts = _table(("rows", "number"), [(status, n) for status, n in screening.counts.items()])
    lines = []
    for trait in screening.traits:
        delta = screening.measure(trait)
        limit = f"{thresholds[trait]:.3f}" if trait in thresholds else "none"
        lines.append((trait, screening.config["layers"][trait], delta, f"{delta.estimate / lengths[trait]:.3f}", limit))
    heads = ("trait", "layer", "ΔP of the dataset, 95 % interval", "ΔP / length of the vector", "threshold")
    summary = _table(heads, lines)
    settings = screening.config["settings"]
    parts = [
        f"<h1>Screening with {html.escape(model)}</h1>",
        "<p>ΔP is how far a conversation's response lies from the model's own response to the same prompt, along a "
        "trait's vector. Training on data with a high ΔP tends to strengthen the trait (Persona Vectors, arXiv "
        "2507.21509, section 6). It is a projection, not a judgement: read the texts.</p>",
        "<h2>Rows</h2>", counts,
        f"<p>{_TURNS[settings['turn']]}, up to {settings['max_response_tokens']} tokens; {screening.n_cut} of the "
        f"scored rows have a longer one. To {screening.n_without_base} prompts the model says nothing itself, so these "
        "rows have no ΔP.</p>",
        "<h2>Traits</h2>", summary, figure,
    ]  # fmt: skip
    if screening.n_with_further:
        parts.insert(
            4, f"<p>{screening.n_with_further} conversations have further answers, which were not looked at.</p>"
        )
    if not screening.is_whole:
        parts.insert(2, "<p><strong>The data could not be read to their end: nobody knows how many rows are "
                     "missing.</strong></p>")  # fmt: skip
    if held:
        parts += ["<h2>Held back</h2>", _table(("reason", "rows"), list(held.items()))]
    rows = screening.rows
    bad = [index for index, status in enumerate(rows["status"][:]) if status != "scored"]
    if bad:
        shown = [rows[index] for index in bad[:_N_BAD]]
        cells = [(row["place"], row["status"], row["detail"]) for row in shown]
        parts += [
            f"<h2>Not scored: the first {len(shown)} of {len(bad)}</h2>",
            _table(("place", "reason", "detail"), cells),
        ]
    for trait in screening.traits:
        deltas = [(value, index) for index, value in enumerate(rows[f"{trait}.delta"][:]) if value is not None]
        deltas.sort()
        for title, chosen in (("most", deltas[::-1][:_N_EXTREME]), ("least", deltas[:_N_EXTREME])):
            parts.append(f"<h2>{html.escape(trait)}: the {title} extreme</h2>")
            parts.append(_list_samples([(value, _find_answer(rows[index], trait)) for value, index in chosen]))
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Screening</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _find_answer(row: Mapping[str, Any], trait: str) -> Mapping[str, Any]:
    """Return the texts that a row's ΔP on a trait comes from; where several answers count, with the one's number."""
    answers = row.get("answers") or []
    if len(answers) < 2:
        return row
    number = row[f"{trait}.answer"]
    return {**answers[number - 1], "place": f"{row['place']}, answer {number} of {len(answers)}"}


def _list_samples(samples: list[tuple[float, Mapping[str, Any]]]) -> str:
    lines = []
    for value, row in samples:
        texts = "".join(
            f'<td class="text">{_shorten(row[key])}</td>' for key in ("question", "response", "base_response")
        )
        lines.append(f'<tr><td class="n">{value:.2f}</td><td>{html.escape(row["place"])}</td>{texts}</tr>')
    heads = ("ΔP", "place", "asked", "response in the data", "the model's own")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(lines)}</table>"


def _shorten(text: str) -> str:
    return html.escape(text if len(text) <= _N_SHOWN else text[:_N_SHOWN] + " …")


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
