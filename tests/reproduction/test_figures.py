"""A result as files: JSON, pages, and PNGs with a palette."""

import bz2
import dataclasses
import io
import json
import math
from dataclasses import dataclass

import kaleido
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from persona_lens.errors import FileFormatError
from persona_lens.reproduction import figures
from persona_lens.reproduction.figures import Result, shrink_picture, write_pictures, write_results

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


def test_a_map_of_many_shades_keeps_them_and_lines_do_with_few():
    shades = np.full((200, 240, 3), 255, np.uint8)  # 120 squares
    shades[..., 0] = np.linspace(0, 255, 12).repeat(20)
    shades[..., 1] = np.linspace(0, 255, 10).repeat(20)[:, None]
    lines = np.full((200, 256, 3), 255, np.uint8)
    lines[100] = LINES[0]
    for pixels, at_least, at_most in ((shades, 65, 256), (lines, 2, 32)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        _, shrunk = read(shrink_picture(file.getvalue()))
        assert at_least <= len(np.unique(shrunk.reshape(-1, 3), axis=0)) <= at_most
        assert (np.abs(shrunk - pixels).max(axis=-1) > 8).mean() <= 0.02


@pytest.fixture
def browsers(monkeypatch):
    """What each browser that is started draws; the picture is the same whatever the figure."""
    started = []

    def draw(wanted, *, cancel_on_error):
        assert cancel_on_error  # else a figure that fails is left out in silence
        started.append([one["fig"]["layout"]["title"]["text"] for one in wanted])
        for one in wanted:
            one["path"].write_bytes(make_picture()[1])

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", draw)
    return started


def test_what_is_written_is_the_smaller_picture(tmp_path, browsers):
    write_pictures({"one": Pair(CONFIG).plot()}, tmp_path)
    assert read((tmp_path / "one.png").read_bytes())[0] == "P"


def test_each_figure_of_a_result_has_a_page_and_a_picture_and_says_whose_scores_it_shows(tmp_path, browsers):
    Pair(CONFIG).write(tmp_path, "pair")
    names = ["pair.html", "pair.json", "pair.png", "pair_more.html", "pair_more.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, title in (("pair.html", "first"), ("pair_more.html", "second")):
        assert f"Judge not validated for loud \\u00b7 {title}" in (tmp_path / name).read_text()


def test_all_figures_of_several_results_are_drawn_by_one_browser(tmp_path, browsers):
    write_results({"one": Pair(CONFIG), "two": Pair(CONFIG)}, tmp_path)
    assert [[title.rpartition(" ")[2] for title in drawn] for drawn in browsers] == [["first", "second"] * 2]
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_without_a_browser_each_picture_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    def find_none(*_, **__):
        raise kaleido.errors.ChromeNotFoundError

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", find_none)
    Pair(CONFIG).write(tmp_path, "pair")
    said = capsys.readouterr().out
    assert "pair.png was not written: no Chrome or Chromium found" in said
    assert "pair_more.html is there" in said
    assert list(tmp_path.glob("*.png")) == []
    assert (tmp_path / "pair.html").exists()


@dataclass(frozen=True, eq=False)
class Said(Result):
    responses: tuple[tuple[str, ...], ...]
    parts: dict[str, dict[str, list[str]]]
    scores: tuple[float, ...]

    def plot(self):
        return go.Figure()


def make_said():
    texts = (("one\nline", "é \u2028 “|”"), ("", "{"))
    return Said(CONFIG, texts, {"more": {"responses": ["kept"], "questions": ["Why?"]}}, (1.0, 2.0))


def test_texts_of_responses_lie_in_a_file_of_their_own_and_come_back(tmp_path):
    said = make_said()
    said.save(tmp_path / "said.json")
    content = json.loads((tmp_path / "said.json").read_text())
    assert (content["responses"], content["scores"]) == ({"line": 0}, [1.0, 2.0])
    assert content["parts"]["more"] == {"responses": {"line": 1}, "questions": ["Why?"]}
    assert Said.load(tmp_path / "said.json").to_json() == said.to_json()


def test_the_file_of_texts_is_the_same_when_only_scores_are_others(tmp_path):
    texts = tmp_path / "responses" / "said.jsonl.bz2"
    make_said().save(tmp_path / "said.json")
    before = texts.read_bytes()
    dataclasses.replace(make_said(), scores=(3.0,)).save(tmp_path / "said.json")
    assert texts.read_bytes() == before


def test_a_result_that_was_written_with_its_texts_is_still_read(tmp_path):
    (tmp_path / "said.json").write_text(json.dumps(make_said().to_json()))
    assert Said.load(tmp_path / "said.json").to_json() == make_said().to_json()


def test_a_result_without_responses_has_no_file_of_texts(tmp_path):
    make_said().save(tmp_path / "pair.json")
    Pair(CONFIG).save(tmp_path / "pair.json")
    assert list((tmp_path / "responses").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"no bzip2"),
        lambda path: path.write_bytes(bz2.compress(b'["another"]\n')),
        lambda path: path.write_bytes(bz2.compress(bz2.decompress(path.read_bytes()).replace(b"kept", b"kepT"))),
    ],
    ids=["missing", "cut", "foreign", "short", "changed"],
)
def test_texts_that_are_not_those_that_were_written_are_refused(tmp_path, damage):
    make_said().save(tmp_path / "said.json")
    damage(tmp_path / "responses" / "said.jsonl.bz2")
    with pytest.raises(FileFormatError, match=r"said\.json.*(responses/said\.jsonl\.bz2, whole|another checksum)"):
        Said.load(tmp_path / "said.json")


@dataclass(frozen=True, eq=False)
class Measured(Result):
    values: Float[Tensor, " n"]
    parts: tuple[dict[str, float], ...]

    def plot(self):
        return go.Figure(go.Scatter(x=self.values.tolist(), y=[part["a"] for part in self.parts]))


def test_floats_are_kept_to_seven_digits_and_what_is_drawn_is_what_was_kept(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "write_pictures", lambda found, *_: drawn.extend(found["measured"].data))
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
