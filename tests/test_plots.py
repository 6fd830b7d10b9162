import plotly.graph_objects as go
import pytest

import persona_lens as pl
from persona_lens.plots import plot_sweep, plot_trait_survey, plot_vector
from tests.small_trait import tiny_trait
from tests.test_sweep import LengthJudge


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


@pytest.fixture(scope="module")
def sweep(tiny_model, vector):
    return pl.sweep_layers(
        tiny_model, tiny_trait(), vector, coefficients=(1.0, 2.0), judge=LengthJudge(), max_new_tokens=4
    )


def titles(figure):
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    return {axis.title.text for axis in axes if axis.title.text}


def test_a_sweeps_figure_draws_its_numbers(sweep):
    figure = plot_sweep(sweep)
    drawn = [tuple(trace.y) for trace in figure.data if trace.y is not None and len(trace.y) == len(sweep.layers)]
    for j in range(2):
        assert tuple(sweep.scores[:, j].nanmean(-1).tolist()) in [pytest.approx(y) for y in drawn]
        assert tuple(sweep.coherences[:, j].nanmean(-1).tolist()) in [pytest.approx(y) for y in drawn]


def test_every_axis_of_a_figure_is_labelled_and_the_title_says_the_finding(sweep, vector):
    for figure in (plot_sweep(sweep), plot_vector(vector)):
        assert isinstance(figure, go.Figure)
        assert any("layer" in title.lower() for title in titles(figure))
        assert figure.layout.title.text
    assert "loud" in plot_sweep(sweep).layout.title.text


def test_text_from_a_trait_is_escaped_in_a_figure(sweep):
    content = sweep.to_json() | {"trait": "<script>alert(1)</script>"}
    page = plot_sweep(pl.SweepResult.from_json(content)).to_html(include_plotlyjs=False)
    assert "<script>alert(1)" not in page


def test_drawing_writes_nothing(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot_sweep(sweep)
    assert not list(tmp_path.iterdir())


def interval(estimate):
    return {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1, "level": 0.95}


def test_a_survey_marks_the_traits_that_fail_and_keeps_them():
    found = {key: interval(value) for key, value in (("baseline", 20.0), ("random", 21.0), ("steered", 60.0))}
    rows = [
        {"trait": "kind", "works": True, "failure": "", "auroc": interval(0.97), "confirmation": found},
        {"trait": "<i>odd</i>", "works": False, "failure": "no <b>pair</b> was kept", "auroc": interval(0.6)},
    ]
    figure = plot_trait_survey(rows)
    assert tuple(figure.data[0].y) == ("&lt;i&gt;odd&lt;/i&gt; ✗", "kind ✓")
    assert tuple(figure.data[0].x) == (0.6, 0.97)
    assert {trace.name: tuple(trace.x) for trace in figure.data}["steered with the vector"] == (60.0,)
    assert "1 of 2 traits" in figure.layout.title.text
    notes = "".join(annotation.text for annotation in figure.layout.annotations)
    assert "no &lt;b&gt;pair&lt;/b&gt; was kept" in notes
    assert {"AUROC", "trait score (0–100), fresh questions"} <= titles(figure)
