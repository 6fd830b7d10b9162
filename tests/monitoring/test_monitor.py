import json

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import FileFormatError, HooksPresentError, InvalidArgumentError, ModelMismatchError
from persona_lens.monitoring import PersonaMonitor, project_last_prompt_token
from persona_lens.statistics import Interval
from tests.monitoring.examples import CHAT, LAYERS, ORDINARY, make_graded


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
    monitor = PersonaMonitor.calibrate(model, vectors, LAYERS, ordinary=[CHAT, ORDINARY[0]], responses=None)
    assert len(monitor.traits[0].ordinary) == 3


def test_a_trait_that_is_not_reliable_gets_a_verdict_and_no_score(model, monitor):
    watched = monitor.watch(model, CHAT)
    assert all(isinstance(reading.expected_score, Interval) and not reading.verdict for reading in watched.of("loud"))
    assert all(reading.expected_score is None for reading in watched.of("shy"))
    assert all("not reliable for this trait" in reading.verdict for reading in watched.of("shy"))
    for text in (watched._repr_html_(), monitor._repr_html_(), repr(monitor)):
        assert "not reliable for this trait" in text


def test_without_graded_prompts_there_are_thresholds_and_no_scores(model, vectors):
    monitor = PersonaMonitor.calibrate(model, vectors, LAYERS, responses=None)
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
    del content["traits"][0]["unit"], content["checksum"]
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
