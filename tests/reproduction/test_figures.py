"""A result as files: JSON, pages, and PNGs with a palette."""

import io
import json
import math
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from persona_lens.reproduction import figures
from persona_lens.reproduction.figures import Result, shrink_picture, write_picture

CONFIG = {"model": {"name": "tiny", "fingerprint": "f00d"}}


@dataclass(frozen=True, eq=False)
class Pair(Result):
    judges = {"loud": "a judge"}  # noqa: RUF012 - nothing changes it

    def plot(self):
        return go.Figure(layout={"title": {"text": "first"}})

    def list_figures(self):
        return {"": self.plot(), "_more": go.Figure(layout={"title": {"text": "second"}})}


AREAS = [(236, 236, 236), (217, 233, 243), (229, 229, 208), (194, 221, 236), (189, 204, 194)]
LINES = [(214, 45, 32), (120, 20, 160), (0, 110, 60)]


def make_picture():
    """What figures hold: areas, thin lines in colours of their own, and thousands of shades at the edges of things."""
    pixels = np.full((300, 400, 4), 255, np.uint8)
    pixels[20:120, :, 0] = np.linspace(0, 255, 400)
    pixels[20:120, :, 1] = np.linspace(255, 0, 100)[:, None]
    for place, colour in enumerate(LINES):
        pixels[130 + 10 * place, 10:40, :3] = colour
    pixels[180:200, :, :3] = np.random.default_rng(0).integers(150, 256, (20, 400, 3))
    for place, colour in enumerate(AREAS):
        pixels[200 + 20 * place : 220 + 20 * place, :, :3] = colour
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return pixels[..., :3].astype(int), file.getvalue()


def read(png):
    with Image.open(io.BytesIO(png)) as picture:
        return picture.mode, np.asarray(picture.convert("RGB")).astype(int)


def test_a_picture_gets_a_palette_and_keeps_its_areas_and_thin_lines():
    pixels, png = make_picture()
    mode, shrunk = read(shrink_picture(png))
    assert mode == "P"
    assert shrunk.shape == pixels.shape
    moved = np.abs(shrunk - pixels).max(axis=-1)
    assert moved.max() <= 25
    assert moved[:20].max() == 0  # white
    assert moved[200:].max() <= 2  # areas; without k-means they move by 11
    assert moved[130:160].max() <= 2  # lines; the median cut moves them by 57


def test_the_same_picture_gives_the_same_file():
    _, png = make_picture()
    assert shrink_picture(png) == shrink_picture(png)


def test_what_is_written_is_the_smaller_picture(tmp_path, monkeypatch):
    _, png = make_picture()
    figure = go.Figure()
    monkeypatch.setattr(go.Figure, "to_image", lambda *_, **__: png)
    write_picture(figure, tmp_path, "one")
    assert read((tmp_path / "one.png").read_bytes())[0] == "P"


def test_each_figure_of_a_result_has_a_page_and_a_picture_and_says_whose_scores_it_shows(tmp_path, monkeypatch):
    _, png = make_picture()
    monkeypatch.setattr(go.Figure, "to_image", lambda *_, **__: png)
    Pair(CONFIG).write(tmp_path, "pair")
    names = ["pair.html", "pair.json", "pair.png", "pair_more.html", "pair_more.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, title in (("pair.html", "first"), ("pair_more.html", "second")):
        assert f"Judge not validated for loud \\u00b7 {title}" in (tmp_path / name).read_text()


@dataclass(frozen=True, eq=False)
class Measured(Result):
    values: Float[Tensor, " n"]
    parts: tuple[dict[str, float], ...]

    def plot(self):
        return go.Figure(go.Scatter(x=self.values.tolist(), y=[part["a"] for part in self.parts]))


def test_floats_are_kept_to_seven_digits_and_what_is_drawn_is_what_was_kept(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "write_picture", lambda figure, *_: drawn.extend(figure.data))
    measured = Measured(
        CONFIG | {"seed": 123456789}, torch.tensor([1 / 3, 2e-9 / 3]), ({"a": 1e5 / 3}, {"a": math.inf})
    )
    measured.write(tmp_path, "measured")
    content = json.loads((tmp_path / "measured.json").read_text())
    assert (content["values"], content["parts"]) == ([0.3333333, 6.666667e-10], [{"a": 33333.33}, {"a": "inf"}])
    assert content["config"]["seed"] == 123456789
    read = Measured.load(tmp_path / "measured.json")
    assert read.to_json() == measured.to_json()
    assert [tuple(trace.y) for trace in drawn] == [(33333.33, math.inf)]
    assert [tuple(trace.x) for trace in drawn] == [tuple(read.values.tolist())]


def test_pages_alone_leave_the_pictures_and_the_result(tmp_path):
    Pair(CONFIG).write_pages(tmp_path, "pair")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair.html", "pair_more.html"]
