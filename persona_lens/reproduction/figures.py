"""Results as files: NAME.json, and each figure as NAME.html and NAME.png. Git holds JSON and PNG.

The texts of judged responses lie apart, in responses/NAME.jsonl.bz2; :meth:`Result.load` reads both.
"""

from __future__ import annotations

import html
import io
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from persona_lens.files import write_bytes_atomically, write_dense_json
from persona_lens.records import Record
from persona_lens.reproduction.kept_texts import read_together, save_apart
from persona_lens.reproduction.verdicts import find_verdicts, say_verdicts

_PALETTES = (32, 64, 128, 256)
# At most so large a share of the pixels may move by more than so much of 255 in any channel: the first keeps the shades
# of a map's areas apart, the second the colours of a few small points.
_MOST_MOVED = {8: 0.02, 16: 0.0005}


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

    def save(self, path: str | Path) -> None:
        """Write the result as JSON with a checksum of it and of the responses' texts, which lie in a file beside it."""
        path = Path(path)
        write_dense_json(path, save_apart(path, self._seal()))

    @classmethod
    def _read_file(cls, path: Path) -> Any:
        return read_together(path, super()._read_file(path))

    def write(self, folder: Path, name: str) -> None:
        """Write it as NAME.json, and each figure as a page and, where there is a browser, as a PNG."""
        write_results({name: self}, folder)

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


def write_results(results: Mapping[str, Result], folder: Path) -> None:
    """Write each result as NAME.json, its figures as pages and, where there is a browser, all of them as PNGs.

    What is drawn is what the file holds, so that it is redrawn from there as it was.
    """
    figures: dict[str, go.Figure] = {}
    for name, result in results.items():
        result.save(folder / f"{name}.json")
        pages = result.load(folder / f"{name}.json").write_pages(folder, name)
        figures |= {f"{name}{ending}": figure for ending, figure in pages.items()}
    write_pictures(figures, folder)


def write_pictures(figures: Mapping[str, go.Figure], folder: Path) -> None:
    """Write each figure as NAME.png, all with one browser. Without a Chrome or Chromium a line for each says so."""
    import kaleido  # only a script that writes figures needs it
    from kaleido.errors import ChromeNotFoundError

    with tempfile.TemporaryDirectory() as drawn:
        wanted = [
            {"fig": figure.to_dict(), "path": Path(drawn) / f"{name}.png", "opts": {"format": "png", "scale": 1}}
            for name, figure in figures.items()
        ]
        try:
            kaleido.write_fig_from_object_sync(wanted, cancel_on_error=True)
        except ChromeNotFoundError:
            for name in figures:
                reason = "no Chrome or Chromium found (set BROWSER_PATH)"
                print(f"{name}.png was not written: {reason}. {name}.html is there.")
        else:
            for name in figures:
                picture = (Path(drawn) / f"{name}.png").read_bytes()
                write_bytes_atomically(folder / f"{name}.png", shrink_picture(picture))


def shrink_picture(png: bytes) -> bytes:
    """Give a PNG the smallest palette with which it looks the same: a figure's file is a quarter as large.

    Figures of lines and texts do with 32 colours; maps of many shades need more. Transparency goes.
    """
    from PIL import Image  # as kaleido

    with Image.open(io.BytesIO(png)) as picture:
        plain = picture.convert("RGB")
    for n_colours in _PALETTES:
        # Pillow's way of covering all colours keeps rare ones, such as those of thin lines; k-means then brings those
        # of large areas back to where they were.
        shrunk = plain.quantize(n_colours, Image.Quantize.MAXCOVERAGE, kmeans=2)
        moved = np.abs(np.asarray(shrunk.convert("RGB"), np.int16) - np.asarray(plain, np.int16)).max(axis=-1)
        if all((moved > far).mean() <= share for far, share in _MOST_MOVED.items()):
            break
    # Frequent colours first, as well as zlib's strategy for small numbers, save some three per cent.
    counts = shrunk.histogram()
    used = [colour for colour in sorted(range(len(counts)), key=lambda one: -counts[one]) if counts[colour]]
    file = io.BytesIO()
    shrunk.remap_palette(used).save(file, "PNG", optimize=True, compress_type=zlib.Z_FILTERED)
    return file.getvalue()
