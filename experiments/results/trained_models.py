"""How the figures of experiments on trained models look alike."""

from __future__ import annotations

from persona_lens.plots.style import COLORS

LEVEL_COLORS = {"normal": COLORS[0], "I": COLORS[1], "II": COLORS[3]}
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "cross", "pentagon", "hexagon")
