"""A text coloured by projection."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from persona_lens.checking import checked
from persona_lens.files import write_text
from persona_lens.plots.style import GREY, INK

if TYPE_CHECKING:
    from persona_lens.evaluation.tracing import Trace


@dataclass(frozen=True)
class ColouredTokens:
    """Text with coloured tokens, as HTML that shows itself in Jupyter.

    Args:
        html: One element; every piece of model text in it is escaped.
        summary: What it shows, in a few words.
    """

    html: str
    summary: str = "a text"

    def __repr__(self) -> str:
        return f"ColouredTokens({self.summary}; a notebook shows it, .write_html(path) writes a page)"

    def _repr_html_(self) -> str:
        return self.html

    def write_html(self, path: str | Path) -> None:
        """Write a page of its own."""
        page = f'<!doctype html><meta charset="utf-8"><title>Projection by token</title>\n{self.html}\n'
        write_text(path, page)


@checked
def plot_trace(trace: Trace, layers: Sequence[int]) -> ColouredTokens:
    """Colour a traced conversation's tokens by their projection, one row a layer.

    Orange is towards the trait, blue away from it, both measured from the unsteered prompt-and-response median of the
    layer; a full colour is the layer's largest distance from it. Steered tokens are underlined; hovering over a token
    gives its numbers.

    Args:
        trace: What :func:`persona_lens.trace` returned.
        layers: Zero-based block indices.

    Returns:
        HTML.
    """
    is_changed = bool(trace.steered.any()) or not torch.equal(trace.before, trace.after)
    rows = []
    for layer in layers:
        before, after = trace.before[layer], trace.after[layer]
        middle = before.median()
        # The first token's residual stream is far larger than all others in most models; it sets no scale.
        distances = torch.cat([before[1:], after[1:]]) - middle if len(before) > 1 else before - middle
        largest = float(distances.abs().max()) or 1.0
        spans = [
            _colour_token(token, float(b), float(a), float((a - middle) / largest), bool(s), bool(r))
            for token, b, a, s, r in zip(trace.tokens, before, after, trace.steered[layer], trace.read, strict=True)
        ]
        mean_before, mean_after = trace.response_mean[layer].tolist()
        with_hooks = f" without the hooks, {mean_after:.2f} with them" if is_changed else ""
        caption = (
            f"Layer {layer}, projection on {html.escape(trace.trait)} (residual-stream units): response mean "
            f"{mean_before:.2f}{with_hooks}. Orange: towards the trait, blue: away. "
            f"{'Underlined: steered. ' if is_changed else ''}Black: response, grey: prompt."
        )
        rows.append(
            f'<p style="font:12px sans-serif;color:{GREY};margin:8px 0 2px">{caption}</p>'
            f'<div style="font:14px monospace;line-height:1.8;white-space:pre-wrap">{"".join(spans)}</div>'
        )
    shown = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    content = f'<div style="max-width:60em;background:#FFFFFF;padding:8px">{"".join(rows)}</div>'
    return ColouredTokens(content, f"{len(trace.tokens)} tokens, {shown}")


def _colour_token(token: str, before: float, after: float, strength: float, steered: bool, read: bool) -> str:
    strength = max(-1.0, min(1.0, strength))
    red, green, blue = (230, 159, 0) if strength > 0 else (86, 180, 233)
    style = f"background:rgba({red},{green},{blue},{abs(strength):.2f});color:{INK if read else GREY};"
    style += f"border-bottom:2px solid {INK if steered else 'transparent'}"
    title = f"{before:.2f} before, {after:.2f} after" + (", steered" if steered else "")
    text = html.escape(token).replace("\n", "⏎\n")
    return f'<span style="{style}" title="{title}">{text}</span>'
