import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import (
    ContextLengthError,
    FileFormatError,
    HooksPresentError,
    InvalidArgumentError,
    LayerOutOfRangeError,
    ModelMismatchError,
)
from persona_lens.monitoring import (
    GradedProjections,
    MonitoringCorrelation,
    PersonaMonitor,
    ScoreMap,
    fit_score_map,
    measure_monitoring,
    project_last_prompt_token,
)
from persona_lens.plots import plot_monitoring
from persona_lens.tensors.statistics import Interval, pearson_r, pearson_r_within
from tests.backends import BACKENDS
from tests.test_steering import make_vector

ORDINARY = [[{"role": "user", "content": text}] for text in ("Hi", "Why so?", "A pear?", "Tell me.", "And now?")]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who <b>?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Really?"},
]
LAYERS = {"loud": 1, "shy": 2}


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vectors(model):
    return {"loud": make_vector(model), "shy": make_vector(model, 1, "shy")}


def make_graded(vector, layer=1, within=1.0, seed=0, n_questions=20, n_conditions=4):
    """Scores follow the projection inside conditions with the slope asked for, and across them with 10."""
    rng = np.random.default_rng(seed)
    condition = np.repeat(np.arange(n_conditions), n_questions)
    x = rng.normal(size=n_questions * n_conditions)
    y = 40 + 10 * condition + 5 * within * x + rng.normal(size=len(x)) * 2
    x = x + 3 * condition
    return GradedProjections(
        vector.trait, vector.model, layer, torch.tensor(x).float(), torch.tensor(y).float(),
        tuple(f"c{c}" for c in condition), tuple(f"q{i % n_questions}" for i in range(len(x))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def graded(vectors):
    return {"loud": make_graded(vectors["loud"]), "shy": make_graded(vectors["shy"], 2, within=0.0)}


@pytest.fixture(scope="module")
def monitor(model, vectors, graded):
    return PersonaMonitor.calibrate(model, vectors, LAYERS, ordinary=ORDINARY, graded=graded, quantiles=(0.5, 0.9))


def direct_projection(model, conversation, vector, layer):
    """By the model's own cache, one conversation at a time."""
    text = model.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor([model.tokenizer(text)["input_ids"]])  # with the BOS, which ChatML does not render
    _, cache = model.run_with_cache(tokens)
    return float(cache[f"blocks.{layer}.hook_resid_post"][0, -1] @ vector.unit(layer))


def test_the_projection_is_that_of_the_generation_prompts_last_token(model, vectors):
    conversations = [*ORDINARY, CHAT, CHAT[:2]]
    found = project_last_prompt_token(model, conversations, vectors, LAYERS)
    for name, vector in vectors.items():
        expected = [direct_projection(model, chat, vector, LAYERS[name]) for chat in conversations]
        torch.testing.assert_close(found[name], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_a_conversation_that_begins_another_is_read_from_its_pass(model, vectors, monkeypatch):
    seen = []
    run = pl.monitoring.project_residual_stream

    def count(model, tokens, *args, **kwargs):
        seen.append(len(tokens))
        return run(model, tokens, *args, **kwargs)

    monkeypatch.setattr(pl.monitoring, "project_residual_stream", count)
    project_last_prompt_token(model, [CHAT[:2], CHAT, CHAT], vectors, LAYERS)
    assert seen == [1]


def test_the_projection_uses_the_vectors_own_token_position(model, vectors):
    directions = torch.randn(3, 48)
    both = pl.PersonaVector(
        "loud", pl.describe_model(model), {"response_mean": vectors["loud"].directions, "last_prompt": directions}
    )
    found = project_last_prompt_token(model, [CHAT], {"a": both, "b": both.at("last_prompt")}, {"a": 1, "b": 1})
    assert float(found["a"]) == pytest.approx(direct_projection(model, CHAT, both, 1), abs=1e-4)
    assert float(found["b"]) == pytest.approx(direct_projection(model, CHAT, both.at("last_prompt"), 1), abs=1e-4)


def test_many_conversations_give_what_each_gives_alone(model, vectors, monkeypatch):
    together = project_last_prompt_token(model, ORDINARY, vectors, LAYERS)["loud"]
    monkeypatch.setattr(pl.monitoring, "_TOKENS_AT_ONCE", 1)
    alone = project_last_prompt_token(model, ORDINARY, vectors, LAYERS)["loud"]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("conversations", "words"),
    [
        ([], "at least one"),
        ([[]], r"conversations\[0\].*at least one message"),
        ([ORDINARY[0], [{"role": "wizard", "content": "Hi"}]], r"conversations\[1\].*'wizard'"),
        ([[{"role": "user", "content": 3}]], "text"),
        ([[*CHAT[:3]]], "end where the assistant"),
        ([[{"role": "system", "content": "Hi"}]], "message of the user"),
    ],
)
def test_a_bad_conversation_is_refused_before_the_model_runs(model, vectors, conversations, words, monkeypatch):
    monkeypatch.setattr(pl.monitoring, "project_residual_stream", None)
    with pytest.raises(InvalidArgumentError, match=words):
        project_last_prompt_token(model, conversations, vectors, LAYERS)


def test_bad_vectors_and_layers_are_refused(model, vectors, tiny_folder):
    with pytest.raises(LayerOutOfRangeError):
        project_last_prompt_token(model, ORDINARY, vectors, LAYERS | {"shy": 3})
    with pytest.raises(InvalidArgumentError, match="shy"):
        project_last_prompt_token(model, ORDINARY, vectors, {"loud": 1})
    with pytest.raises(InvalidArgumentError, match="at least one vector"):
        project_last_prompt_token(model, ORDINARY, {}, {})
    other = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        project_last_prompt_token(other, ORDINARY, vectors, LAYERS)
    with pytest.raises(ContextLengthError):
        project_last_prompt_token(model, [[{"role": "user", "content": "long " * 99}]], vectors, LAYERS)


@given(st.integers(0, 10_000))
def test_the_correlations_are_those_of_the_statistics(seed):
    rng = np.random.default_rng(seed)
    x, y = (torch.tensor(rng.normal(size=30) * 20) for _ in range(2))
    y[20:] = 50.0 + torch.arange(10) / 100
    conditions = [f"c{i // 10}" for i in range(30)]
    found = measure_monitoring(x.float(), y.float(), conditions, [str(i % 10) for i in range(30)], n_resamples=20)
    within, left_out = pearson_r_within(x.float(), y.float(), conditions)
    assert found.overall.estimate == pytest.approx(pearson_r(x.float(), y.float()))
    assert found.within.estimate == pytest.approx(within)
    assert list(found.left_out) == left_out == ["c2"]
    assert found.conditions == ("c0", "c1")
    assert found.overall.low <= found.overall.high <= 1
    assert (found.n, found.n_questions) == (30, 10)


def test_reliable_is_only_what_holds_inside_conditions(vectors):
    good = make_graded(vectors["loud"]).measure()
    between = make_graded(vectors["loud"], within=0.0).measure()
    assert good.is_reliable
    assert between.overall.low > 0.5
    assert not between.is_reliable


def test_an_interval_for_the_correlation_inside_conditions_covers_zero_about_as_often_as_it_should(vectors):
    verdicts = [make_graded(vectors["loud"], within=0.0, seed=seed).measure(n_resamples=200) for seed in range(60)]
    assert sum(one.is_reliable for one in verdicts) <= 6  # 2.5 % of 60 is 1.5


def test_the_bootstrap_resamples_questions_with_all_their_conditions():
    """Twenty copies of five questions are five units: the interval stays wide."""
    rng = np.random.default_rng(1)
    x, y = (torch.tensor(rng.normal(size=5) * 10).float() for _ in range(2))
    once = measure_monitoring(x, y, ["c"] * 5, [str(i) for i in range(5)]).overall
    copies = measure_monitoring(
        x.repeat(20), y.repeat(20), [f"c{i}" for i in range(20) for _ in range(5)], [str(i % 5) for i in range(100)]
    ).overall
    assert copies.high - copies.low == pytest.approx(once.high - once.low)


def test_four_questions_are_too_few_to_call_reliable():
    x = torch.arange(4.0)
    found = measure_monitoring(x, 10 * x, ["c"] * 4, list("abcd"))
    assert found.within.low == pytest.approx(1.0)
    assert not found.is_reliable


def test_where_every_condition_is_left_out_nothing_is_reliable_and_the_json_holds_no_nan():
    found = measure_monitoring(torch.arange(6.0), torch.full((6,), 7.0), list("aaabbb"), list("xyzxyz"))
    assert found.left_out == ("a", "b")
    assert np.isnan(found.within.estimate)
    assert np.isnan(found.overall.estimate)
    assert not found.is_reliable
    again = MonitoringCorrelation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.left_out == found.left_out
    assert str(again) == str(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"projections": torch.arange(2.0), "scores": torch.arange(2.0)}, "at least 3"),
        ({"scores": torch.tensor([1.0, float("nan"), 3.0])}, "1 of 3"),
        ({"conditions": ["a"]}, "conditions"),
        ({"questions": ["x", "x", "x"]}, "two different"),
        ({"n_resamples": 0}, "n_resamples"),
    ],
)
def test_graded_data_that_cannot_be_measured_are_refused(change, words):
    given = {"projections": torch.arange(3.0), "scores": torch.arange(3.0), "conditions": list("aaa")}
    with pytest.raises(InvalidArgumentError, match=words):
        measure_monitoring(**(given | {"questions": list("xyz")} | change))


def test_the_score_map_is_the_line_through_the_graded_prompts_clipped_to_the_scale(vectors):
    data = make_graded(vectors["loud"])
    slope, intercept = np.polyfit(data.projections.numpy(), data.scores.numpy(), 1)
    fitted = fit_score_map(data)
    assert (fitted.slope, fitted.intercept) == (pytest.approx(slope, rel=1e-4), pytest.approx(intercept, rel=1e-4))
    assert fitted.expect(1e6) == Interval(100.0, 100.0, 100.0)
    assert fitted.expect(-1e6) == Interval(0.0, 0.0, 0.0)


def test_the_score_maps_interval_holds_for_conditions_that_it_has_not_seen(vectors):
    """One condition lies apart: fitted with it, residuals are small; left out, they are not."""
    data = make_graded(vectors["loud"], n_conditions=3)
    scores = data.scores.clone()
    scores[40:] = 95.0
    apart = GradedProjections(
        data.trait, data.model, 1, data.projections, scores, data.conditions, data.questions
    )  # fmt: skip
    fitted = fit_score_map(apart)
    residuals = scores - fitted.slope * data.projections - fitted.intercept
    assert fitted.residual_high > float(residuals.quantile(0.975)) + 5


def test_a_monitor_reads_each_turn_before_it_is_written(model, vectors, monitor):
    watched = monitor.watch(model, CHAT)
    assert watched.prompts == ("Who <b>?", "Really?")
    for turn, prefix in enumerate((CHAT[:2], CHAT), start=1):
        expected = project_last_prompt_token(model, [prefix], vectors, LAYERS)
        for name in vectors:
            reading = watched.of(name)[turn - 1]
            assert reading.turn == turn
            assert reading.projection == pytest.approx(float(expected[name]), abs=1e-4)


def test_a_conversation_that_ends_with_the_assistant_has_no_turn_to_come(model, monitor):
    assert len(monitor.watch(model, CHAT[:3]).prompts) == 1


def test_thresholds_quantiles_and_alerts_are_those_of_the_ordinary_prompts(model, vectors, monitor):
    for trait in monitor.traits:
        ordinary = project_last_prompt_token(model, ORDINARY, vectors, LAYERS)[trait.trait]
        assert trait.thresholds == pytest.approx(ordinary.quantile(torch.tensor([0.5, 0.9])).tolist(), abs=1e-4)
        low, middle, high = (trait.read(1, x) for x in (-1e6, sum(trait.thresholds) / 2, 1e6))
        assert (low.alert, middle.alert, high.alert) == (0, 1, 2)
        assert (low.quantile, high.quantile) == (0.0, 1.0)
        assert middle.quantile == pytest.approx(float((ordinary < middle.projection).float().mean()))


def test_an_ordinary_conversation_counts_with_every_prompt_in_it(model, vectors):
    monitor = PersonaMonitor.calibrate(model, vectors, LAYERS, ordinary=[CHAT, ORDINARY[0]])
    assert len(monitor.traits[0].ordinary) == 3


def test_a_trait_that_is_not_reliable_gets_a_verdict_and_no_score(model, monitor):
    watched = monitor.watch(model, CHAT)
    assert all(isinstance(reading.expected_score, Interval) and not reading.verdict for reading in watched.of("loud"))
    assert all(reading.expected_score is None for reading in watched.of("shy"))
    assert all("not reliable for this trait" in reading.verdict for reading in watched.of("shy"))
    for text in (watched._repr_html_(), monitor._repr_html_(), repr(monitor)):
        assert "not reliable for this trait" in text


def test_without_graded_prompts_there_are_thresholds_and_no_scores(model, vectors):
    monitor = PersonaMonitor.calibrate(model, vectors, LAYERS)
    assert len(monitor.traits[0].ordinary) == 40
    assert all("not calibrated" in r.verdict and r.expected_score is None for r in monitor.watch(model, CHAT).readings)


def test_a_saved_monitor_gives_the_same_readings(model, monitor, tmp_path):
    monitor.save(tmp_path / "monitor.json")
    again = PersonaMonitor.load(tmp_path / "monitor.json")
    assert again.watch(model, CHAT).readings == monitor.watch(model, CHAT).readings
    assert repr(again) == repr(monitor)


@pytest.mark.parametrize("text", ["", "[1]", '{"format": "other"}', "\x00\xff"])
def test_a_file_that_holds_no_monitor_is_refused(tmp_path, text):
    path = tmp_path / "monitor.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError):
        PersonaMonitor.load(path)


def test_a_monitor_of_a_later_version_or_cut_short_or_missing_is_refused(monitor, tmp_path):
    path = tmp_path / "monitor.json"
    monitor.save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(FileFormatError, match="Update"):
        PersonaMonitor.load(path)
    del content["traits"][0]["unit"]
    path.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="unit"):
        PersonaMonitor.load(path)
    with pytest.raises(FileNotFoundError):
        PersonaMonitor.load(tmp_path / "nowhere.json")


def test_a_monitor_refuses_another_model(monitor, tiny_folder):
    other = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        monitor.watch(other, CHAT)


def test_a_monitor_refuses_conversations_that_it_cannot_watch(model, monitor):
    for conversation in ([], [CHAT[2]], [{"role": "tool", "content": "x"}], [{"content": "x"}]):
        with pytest.raises(InvalidArgumentError):
            monitor.watch(model, conversation)


def test_calibration_refuses_what_does_not_fit(model, vectors, graded):
    def calibrate(**changes):
        PersonaMonitor.calibrate(model, vectors, LAYERS, **({"ordinary": ORDINARY, "graded": graded} | changes))

    with pytest.raises(InvalidArgumentError, match="graded"):
        calibrate(graded={"loud": graded["loud"]})
    with pytest.raises(InvalidArgumentError, match="layer 2"):
        calibrate(graded=graded | {"shy": make_graded(vectors["shy"], layer=1)})
    with pytest.raises(InvalidArgumentError, match="'shy'"):
        calibrate(graded=graded | {"shy": make_graded(vectors["loud"], layer=2)})
    with pytest.raises(InvalidArgumentError, match="ordinary"):
        calibrate(ordinary=[])
    with pytest.raises(InvalidArgumentError, match=r"ordinary\[1\]"):
        calibrate(ordinary=[ORDINARY[0], []])
    for quantiles in ((), (0.9, 0.5), (0.5, 0.5), (0.0,), (1.0,)):
        with pytest.raises(InvalidArgumentError, match="quantiles"):
            calibrate(quantiles=quantiles)
    idle = ("blocks.1.hook_resid_post", lambda residual, hook: residual)
    with model.hooks(fwd_hooks=[idle]), pytest.raises(HooksPresentError):
        calibrate()


def test_a_steered_model_can_be_watched(model, vectors, monitor):
    before = monitor.watch(model, CHAT[:2]).of("loud")[0].projection
    vector = vectors["loud"]
    with pl.hooked(model, pl.steering_hooks(vector, layer=1, coefficient=2.0, positions="all")):
        after = monitor.watch(model, CHAT[:2]).of("loud")[0].projection
    assert after - before == pytest.approx(2 * float(vector.norms[1]), abs=1e-3)


def test_a_watched_conversation_shows_itself_escaped_and_draws_its_numbers(model, monitor):
    watched = monitor.watch(model, CHAT)
    assert "2 turns" in repr(watched)
    assert "Who &lt;b&gt;?" in watched._repr_html_()
    assert "<b>?" not in watched._repr_html_()
    figure = watched.plot()
    assert isinstance(figure, go.Figure)
    drawn = [trace.y for trace in figure.data]
    for name in LAYERS:
        assert tuple(r.projection for r in watched.of(name)) in drawn
    lines = {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1}
    assert lines == {threshold for trait in monitor.traits for threshold in trait.thresholds}
    assert "Who <b>?" not in figure.to_html(include_plotlyjs=False)
    with pytest.raises(InvalidArgumentError, match="watched"):
        watched.of("nobody")


def test_the_title_names_the_turns_above_the_ordinary(model, monitor):
    trait = monitor.traits[0]
    low = pl.monitoring.TraitMonitor("loud", 1, trait.position, trait.unit, (-1e6, -1e5), (0.5, 0.9))
    high = pl.monitoring.TraitMonitor("loud", 1, trait.position, trait.unit, (1e5, 1e6), (0.5, 0.9))
    alarmed = PersonaMonitor(monitor.model, (low,)).watch(model, CHAT)
    calm = PersonaMonitor(monitor.model, (high,)).watch(model, CHAT)
    assert "loud before turn 1, 2" in alarmed.plot().layout.title.text
    assert "above 90% of ordinary" in repr(alarmed)
    assert "Nothing above" in calm.plot().layout.title.text
    assert "alerts: none" in repr(calm)


def test_graded_data_keep_their_numbers_through_json_and_appear_in_the_figure(vectors):
    data = make_graded(vectors["loud"])
    again = GradedProjections.from_json(json.loads(json.dumps(data.to_json())))
    assert again.to_json() == data.to_json()
    with pytest.raises(FileFormatError, match="layer"):
        GradedProjections.from_json({key: value for key, value in data.to_json().items() if key != "layer"})
    found = data.measure()
    figure = plot_monitoring({"system prompts": again}, {"system prompts": found}, paper={"system prompts": (0.7, 0.5)})
    assert sum(len(trace.x) for trace in figure.data) == len(data.scores)
    (panel,) = figure.layout.annotations
    assert str(found.overall) in panel.text
    assert "paper 0.700" in panel.text
    assert "inside conditions too" in figure.layout.title.text


def test_the_score_map_widens_its_line_by_its_residuals():
    assert ScoreMap(2.0, 10.0, -3.0, 4.0, 9).expect(5.0) == Interval(20.0, 17.0, 24.0)
