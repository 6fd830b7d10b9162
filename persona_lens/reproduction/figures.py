"""Results as files: NAME.json, and each figure as NAME.html and NAME.png. Git holds JSON and PNG."""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from persona_lens.files import write_bytes_atomically
from persona_lens.records import Record
from persona_lens.reproduction.verdicts import find_verdicts, say_verdicts


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

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw all there is to see, by what follows the result's name in the file's."""
        return {"": self.plot()}

    def to_json(self) -> dict[str, Any]:
        """As :meth:`Record.to_json`, floats to seven digits: git keeps each result, and none is measured as finely."""
        return {key: _round_floats(value) for key, value in super().to_json().items()}

    def write(self, folder: Path, name: str) -> None:
        """Write it as NAME.json, and each figure as a page and, where there is a browser, as a PNG.

        What is drawn is what the file holds, so that it is redrawn from there as it was.
        """
        self.save(folder / f"{name}.json")
        for ending, figure in self.load(folder / f"{name}.json").write_pages(folder, name).items():
            write_picture(figure, folder, f"{name}{ending}")

    def write_pages(self, folder: Path, name: str) -> dict[str, go.Figure]:
        """Write each figure as a page; return them. Their titles say which judges are not valid."""
        figures = self.list_figures()
        verdicts = find_verdicts(folder, self.config["model"])
        for ending, figure in figures.items():
            say_verdicts(figure, self.judges, verdicts)
            # A fixed id and plotly.js from its CDN: the page is small, and the same data gives the same file.
            page = figure.to_html(include_plotlyjs="cdn", div_id=f"{name}{ending}", full_html=True)
            write_bytes_atomically(folder / f"{name}{ending}.html", page.encode())
        return figures


def _round_floats(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _round_floats(one) for key, one in value.items()}
    return [_round_floats(one) for one in value] if isinstance(value, list) else value


def write_picture(figure: go.Figure, folder: Path, name: str) -> None:
    """Write NAME.png. Without a Chrome or Chromium it is left out and a line says so."""
    from kaleido.errors import ChromeNotFoundError  # only a script that writes figures needs it

    try:
        picture = figure.to_image("png", scale=1.5)
    except RuntimeError as error:
        # Plotly raises its own RuntimeError while it handles Kaleido's ChromeNotFoundError.
        if not isinstance(error.__context__, ChromeNotFoundError):
            raise
        print(f"{name}.png was not written: no Chrome or Chromium found (set BROWSER_PATH). {name}.html is there.")
    else:
        write_bytes_atomically(folder / f"{name}.png", shrink_picture(picture))


def shrink_picture(png: bytes) -> bytes:
    """Give a PNG a palette of 128 colours: a figure's file is a quarter as large and looks the same.

    Pillow's way of covering all colours keeps rare ones, such as those of thin lines; k-means then brings those of
    large areas back to where they were. Transparency goes.
    """
    from PIL import Image  # as kaleido

    shrunk = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        plain = picture.convert("RGB")
    colours = plain.quantize(128, Image.Quantize.MAXCOVERAGE, kmeans=2)
    colours.save(shrunk, "PNG", optimize=True)
    return shrunk.getvalue()
