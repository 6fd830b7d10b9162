"""What the experiment scripts share: where figures go and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from kaleido.errors import ChromeNotFoundError

from persona_lens.storage import write_bytes_atomically, write_json


def write_figure(figure: go.Figure, content: dict[str, Any] | None, folder: Path, name: str) -> None:
    """Write NAME.json (the data; None leaves it as it is), NAME.html and NAME.png.

    Without a Chrome or Chromium the PNG is left out and a line says so.
    """
    if content is not None:
        write_json(folder / f"{name}.json", content)
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
