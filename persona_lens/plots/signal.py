"""Where a trait's signal is after training, over layers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.checking import checked
from persona_lens.errors import LayerOutOfRangeError
from persona_lens.plots.style import COLORS, GREY, INK, add_points, lay_out
from persona_lens.statistics.interval import Interval

if TYPE_CHECKING:
    from persona_lens.finetuning.signal import FoundSignal

# A look for each reader, and for the one comparison that is none.
LOOKS = {"first vector": (COLORS[2], "circle"), "fresh vector": (COLORS[1], "square"), "probe": (COLORS[5], "diamond")}
_POSITIONS = {"last_prompt": "prompt's last token", "response_mean": "ordinary answer, mean",
              "last_response": "ordinary answer's last token"}  # fmt: skip


@checked
def plot_signal(found: FoundSignal, layer: int | None = None) -> go.Figure:
    """Draw how far a model has moved along each reader, and how well each tells answers apart, over layers.

    Args:
        found: What :func:`persona_lens.finetuning.find_signal` returned.
        layer: Is marked.

    Returns:
        A figure with six panels: movement at three positions, AUROC at two, and the cosine with the first vector.

    Raises:
        LayerOutOfRangeError: The model has no such layer.
    """
    layers = range(len(found.after.cosine["response_mean"]))
    if layer is not None and layer not in layers:
        raise LayerOutOfRangeError.of("layer", f"be in [0, {len(layers)})", layer)
    heads = [f"moved, {said}" for said in _POSITIONS.values()]
    heads += ["answers told apart, mean", "answers told apart, last token", "fresh vector against the first"]
    figure = make_subplots(rows=2, cols=3, subplot_titles=heads, vertical_spacing=0.16, horizontal_spacing=0.08)
    for column, position in enumerate(_POSITIONS, start=1):
        for reader, (color, symbol) in LOOKS.items():
            moves = [found.after.find_move(reader, one, position) for one in layers]
            _add(figure, 1, column, moves, reader, color, symbol, in_legend=column == 1)
    for column, (position, readers) in enumerate(found.after.text.items(), start=1):
        for reader, separation in readers.items():
            color, symbol = LOOKS[reader]
            before = found.before.text[position][reader].auroc
            _add(figure, 2, column, separation.auroc, reader, color, symbol)
            _add(figure, 2, column, before, f"{reader}, before", color, symbol, dash="dot")
    cosines: Mapping[str, Sequence[Interval]] = {"after": found.after.cosine["response_mean"],
                                                 "before": found.before.cosine["response_mean"]}  # fmt: skip
    _add(figure, 2, 3, cosines["after"], "cosine, after", INK, "cross", in_legend=True)
    _add(figure, 2, 3, cosines["before"], "cosine, before", GREY, "cross", in_legend=True, dash="dot")
    for row, column in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)):
        figure.add_hline(y=0.5 if row == 2 and column < 3 else 0, line={"color": INK, "width": 1}, row=row, col=column)
        figure.update_xaxes(title_text="layer (zero-based block)" if row == 2 else None, row=row, col=column)
        if layer is not None:
            figure.add_vline(x=layer, line={"color": GREY, "width": 1, "dash": "dash"}, row=row, col=column)
    figure.update_yaxes(title_text="moved (vector lengths)", row=1, col=1)
    figure.update_yaxes(title_text="AUROC", row=2, col=1)
    figure.update_yaxes(range=[0, 1.03], row=2, col=1)
    figure.update_yaxes(range=[0, 1.03], row=2, col=2)
    figure.update_yaxes(title_text="cosine", row=2, col=3)
    n = found.after.text["response_mean"]["first vector"].n_questions
    where = "" if layer is None else f"; dashed: layer {layer}"
    lay_out(
        figure,
        _say_finding(found, layer),
        f"{html.escape(found.model)}, {n} held-out questions, 95 % intervals over them; fresh vector and probe tried "
        f"on other questions than they were found on; dotted: before training{where}",
        width=1250, height=760, bottom=110, legend=-0.13,
    )  # fmt: skip
    return figure


def _say_finding(found: FoundSignal, layer: int | None) -> str:
    """Say how far the model moved along each reader at the layer, or that nothing was asked about one."""
    trait = html.escape(found.trait)
    if layer is None:
        return f"Where {trait} is read after training"
    moves = [f"{found.after.find_move(reader, layer).estimate:.2f} along the {reader}" for reader in LOOKS]
    return f"{trait}: at layer {layer} training moved the model by {', '.join(moves)}"


def _add(
    figure: go.Figure, line: int, column: int, values: Sequence[Interval], name: str, color: str, symbol: str,
    *, in_legend: bool = False, dash: str = "solid",
) -> None:  # fmt: skip
    look = {
        "mode": "lines+markers",
        "marker": {"color": color, "symbol": symbol, "size": 5 if dash == "solid" else 1},
        "line": {"color": color, "width": 1.6, "dash": dash},
    }
    bars = {"width": 0, "thickness": 0.8 if dash == "solid" else 0}
    add_points(figure, line, column, list(range(len(values))), values, name, look, in_legend=in_legend, bars=bars)
