import plotly.graph_objects as go
import pytest
import torch
from plotly.subplots import make_subplots

import persona_lens as pl
from persona_lens.plots import plot_agreement, plot_sweep, plot_vector
from persona_lens.plots.style import lay_out, make_room_for_title
from persona_lens.statistics import Interval, mean_over_directions_interval
from tests.small_trait import LengthJudge, tiny_trait


@pytest.fixture(scope="module")
def vector(tiny_model):
    return pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", max_new_tokens=6)


@pytest.fixture(scope="module")
def sweep(tiny_model, vector):
    return pl.sweep_layers(
        tiny_model,
        tiny_trait(),
        vector,
        coefficients=(1.0, 2.0),
        judge=LengthJudge(),
        sampling=pl.Sampling(max_new_tokens=4),
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
    page = plot_sweep(pl.evaluation.SweepResult.from_json(content)).to_html(include_plotlyjs=False)
    assert "<script>alert(1)" not in page


def test_drawing_writes_nothing(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot_sweep(sweep)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def made(sweep):
    """A sweep whose every number is told apart: questions differ, and so do layers, coefficients and directions."""
    grid = torch.arange(3.0)[:, None, None] * 10 + torch.arange(2.0)[:, None] * 5 + torch.tensor([0.0, 1.0, 2.0, 7.0])
    null = (
        torch.arange(2.0)[:, None, None, None] * 3  # direction
        + torch.arange(2.0)[:, None, None] * 20  # layer
        + torch.arange(2.0)[:, None] * 8  # coefficient
        + torch.arange(4.0)
    )
    content = sweep.to_json() | {
        "scores": (40 + grid).tolist(), "coherences": (95 - grid).tolist(), "null_layers": [0, 2],
        "null_scores": (5 + null).tolist(), "null_coherences": (50 + null).tolist(),
        "baseline_scores": [10.0, 11.0, 12.0, 15.0], "baseline_coherences": [80.0, 81.0, 82.0, 85.0],
    }  # fmt: skip
    return pl.evaluation.SweepResult.from_json(content)


def on_panels(figure, name):
    """The traces of a name on the upper and on the lower panel."""
    traces = [trace for trace in figure.data if trace.name and trace.name.startswith(name)]
    upper, lower = sorted(traces, key=lambda trace: trace.yaxis or "y")
    assert (upper.yaxis or "y", lower.yaxis) == ("y", "y2")
    return upper, lower


def test_the_null_baseline_and_choices_are_drawn_at_their_own_numbers(made):
    figure = plot_sweep(made, min_coherence=45.0)
    best = made.choose_coherent(45.0)
    assert (best.layer, best.coefficient) == (2, 2.0)
    null = on_panels(figure, "random directions × 2")
    for trace, values in zip(null, (made.null_scores, made.null_coherences), strict=True):
        assert tuple(trace.x) == (0, 2)
        assert tuple(trace.y) == pytest.approx(values[:, :, 1].mean(dim=(0, 2)).tolist())
        found = [mean_over_directions_interval(values[:, at, 1]) for at in range(2)]  # directions are units too
        assert tuple(trace.error_y.array) == pytest.approx([one.high - one.estimate for one in found])
        assert tuple(trace.error_y.arrayminus) == pytest.approx([one.estimate - one.low for one in found])
    for trace, expected in zip(on_panels(figure, "unsteered"), (12.0, 82.0), strict=True):
        assert tuple(trace.y) == pytest.approx((expected, expected))
    for name in ("choice by score", "choice with coherence surely"):
        for trace, values in zip(on_panels(figure, name), (made.scores, made.coherences), strict=True):
            assert tuple(trace.x) == (2,)
            assert tuple(trace.y) == pytest.approx((float(values[2, 1].mean()),))


def test_a_band_runs_along_the_upper_bounds_and_back_along_the_lower(made):
    bands = [trace for trace in plot_sweep(made).data if trace.fill == "toself"]
    expected = [interval for coefficient in (1.0, 2.0) for interval in (made.score_interval, made.coherence_interval)]
    assert len(bands) == 4
    for trace, interval, coefficient in zip(bands, expected, (1.0, 1.0, 2.0, 2.0), strict=True):
        bounds = [interval(layer, coefficient) for layer in range(3)]
        assert tuple(trace.x) == (0, 1, 2, 2, 1, 0)
        assert tuple(trace.y) == pytest.approx([b.high for b in bounds] + [b.low for b in bounds[::-1]])


@pytest.mark.parametrize(
    ("low", "coherence", "words"),
    [
        (-1.0, (75.0, 80.0, 85.0), "no clear effect above random directions"),
        (-1.0, (15.0, 20.0, 25.0), "no clear effect above random directions"),
        (2.0, (35.0, 40.0, 49.0), "but surely breaks coherence"),
        (2.0, (45.0, 55.0, 65.0), "whether text stays coherent is not sure [45, 65]"),
        (2.0, (35.0, 40.0, 50.0), "whether text stays coherent is not sure [35, 50]"),
        (2.0, (50.0, 60.0, 70.0), "raises the score and surely stays coherent"),
    ],
)
def test_a_sweeps_title_claims_no_more_than_the_confirmation_shows(made, low, coherence, words):
    def exactly(value):
        return Interval(value, value, value)

    confirmation = pl.evaluation.Confirmation(
        layer=1, coefficient=2.0, steered=exactly(61.0), baseline=exactly(12.0), random=exactly(23.0),
        rise=exactly(49.0), above_random=Interval(38.0, low, 50.0),
        coherence=Interval(coherence[1], coherence[0], coherence[2]),
        baseline_coherence=exactly(91.0), random_coherence=exactly(85.0), examples=(), n_questions=2, n_responses=8,
        n_unscored=0,
    )  # fmt: skip
    title = plot_sweep(made, confirmation).layout.title.text
    assert words in title
    assert "layer 1 × 2" in title
    assert f"score 12 → 61 on fresh questions (random directions 23), coherence 91 → {coherence[1]:g}" in title


def test_a_vectors_figure_draws_norm_and_stability_of_each_token_position(vector):
    figure = plot_vector(vector)
    for position, directions in vector.by_position.items():
        norm, stability = on_panels(figure, position.replace("_", " "))
        assert tuple(norm.y) == pytest.approx(directions.norm(dim=-1).tolist())
        assert tuple(stability.y) == pytest.approx(vector.split_half_cosine[position].tolist())
    assert len({tuple(trace.y) for trace in figure.data}) == 6


def test_agreement_has_the_judge_with_the_clear_pairs_in_its_row():
    one = [pl.judges.Judgement(score, None) for score in (90.0, 10.0, 50.0, 85.0)]
    two = [pl.judges.Judgement(score, None) for score in (70.0, 30.0, 20.0, 10.0)]
    panel = pl.judges.PanelResult(("one", "two"), ("q",) * 4, ("a", "b", "c", "d"), (tuple(one), tuple(two)))
    ranks, pairs = plot_agreement(panel, "kind").data
    assert tuple(ranks.x) == tuple(ranks.y) == ("one", "two")
    assert [list(row) for row in pairs.z] == [[None, 0.5], [None, None]]
    assert "of 2 pairs" in pairs.text[0][1]


def test_a_long_title_is_wrapped_and_the_panels_leave_it_room():
    def lay_out_with(title, subtitle="what it rests on", heads=()):
        figure = make_subplots(rows=1, cols=1, subplot_titles=heads)
        lay_out(figure, title, subtitle, width=800, height=500)
        return figure.layout

    short = lay_out_with("a finding")
    long = lay_out_with("a finding that is said at some length " * 5)
    assert short.title.text == "a finding<br><sup>what it rests on</sup>"
    assert long.title.text.count("<br>") == 3
    assert max(map(len, long.title.text.split("<br>"))) < 100
    assert long.margin.t - short.margin.t == 2 * (lay_out_with("a;<br>finding").margin.t - short.margin.t) > 0
    assert lay_out_with("a finding", heads=["one<br>two"]).margin.t > short.margin.t
    first, second, _ = lay_out_with(f"{'a finding that is long, ' * 4};<br>and another").title.text.split("<br>")
    assert second.endswith("; and another")  # with the end of the first
    assert len(first) > 60
    figure = go.Figure()
    lay_out(figure, "a finding that is said at some length " * 5, "below", width=800, height=500)
    figure.update_layout(title_text="what comes before all of it · " + figure.layout.title.text)
    make_room_for_title(figure)
    lines = figure.layout.title.text.partition("<br><sup>")[0].split("<br>")
    assert all(len(line) > 60 for line in lines[:-1])  # none is left short where it was wrapped before
    assert lay_out_with("a <b>finding</b> " * 20).title.text.count("<br>") == 1  # markup is not cut
