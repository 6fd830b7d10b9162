"""Results as files: NAME.json, NAME.html and NAME.png."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from persona_lens.records import Record
from persona_lens.reproduction.verdicts import find_verdicts, say_verdicts
from persona_lens.storage import write_bytes_atomically


@dataclass(frozen=True, eq=False)
class Result(Record, ABC):
    """What a script finds: a record with a figure.

    Args:
        config: Model, profile, seed, versions, and what else the result depends on.
    """

    config: dict[str, Any]

    @property
    def model_name(self) -> str:
        """Name of the model that was measured, for a figure: escaped."""
        return html.escape(self.config["model"]["name"])

    @property
    def judges(self) -> dict[str, str]:
        """By trait, the judge that scores rest on; empty where nothing is scored."""
        return {}

    @abstractmethod
    def plot(self) -> go.Figure:
        """Draw it."""

    def write(self, folder: Path, name: str) -> None:
        """Write it as NAME.json, and its figure as :meth:`draw` does."""
        self.save(folder / f"{name}.json")
        self.draw(self.plot(), folder, name)

    def draw(self, figure: go.Figure, folder: Path, name: str) -> None:
        """Write a figure of it as :func:`write_figure` does; its title says which judges are not valid."""
        say_verdicts(figure, self.judges, find_verdicts(folder, self.config["model"]))
        write_figure(figure, folder, name)


def write_figure(figure: go.Figure, folder: Path, name: str) -> None:
    """Write NAME.html and NAME.png.

    Without a Chrome or Chromium the PNG is left out and a line says so.
    """
    from kaleido.errors import ChromeNotFoundError  # only a script that writes figures needs it

    # A fixed id and plotly.js from its CDN: the page is small, and the same data gives the same file.
    page = figure.to_html(include_plotlyjs="cdn", div_id=name, full_html=True)
    write_bytes_atomically(folder / f"{name}.html", page.encode())
    try:
        write_bytes_atomically(folder / f"{name}.png", figure.to_image("png", scale=1.5))
    except RuntimeError as error:
        # Plotly raises its own RuntimeError while it handles Kaleido's ChromeNotFoundError.
        if not isinstance(error.__context__, ChromeNotFoundError):
            raise
        print(f"{name}.png was not written: no Chrome or Chromium found (set BROWSER_PATH). {name}.html is there.")
