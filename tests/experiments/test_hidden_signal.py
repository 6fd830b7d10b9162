"""Where a signal went: the script run as a user runs it, and seeds put together where the answer is known."""

import importlib
import json
from dataclasses import replace

import pytest
import torch

from persona_lens.finetuning import SignalReading
from persona_lens.statistics import Interval
from persona_lens.vectors import Separation
from tests.experiments.scripts import ROOT, run, save_talkative

READERS = ("first vector", "fresh vector", "probe")
LAYERS = 4


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("results.hidden_signal")


def make(results, score, moved, seed):
    """A model with a score and with a move along each reader at each layer, but for a little by question and seed."""
    noise = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    noise = noise - noise.mean()
    level = Interval(0.9, 0.8, 1.0)
    text = {reader: Separation(6, 6, (level,) * LAYERS, (level,) * LAYERS) for reader in READERS}
    moves = {reader: torch.tensor(moved[reader])[:, None] + 0.01 * noise for reader in READERS}
    signal = SignalReading(
        "loud",
        {position: text for position in ("response_mean", "last_response")},
        {position: (level,) * LAYERS for position in ("response_mean", "last_response")},
        {position: moves for position in ("last_prompt", "response_mean", "last_response")},
    )
    return results.TrainedSignal((1.0,), score + noise, score / 2 + noise, signal, "NO!", {"training": 1.0})


def gather(results, ways):
    return results.HiddenSignal(
        config={"model": {"name": "tiny"}}, trait="loud", layer=1, reader="a", second_reader="b", validations=(),
        ways=tuple(ways), seeds=(0, 1, 2), n_rows=4, n_questions=6, n_held_out=6, core_seconds={"training": 1.0},
    )  # fmt: skip


def put_together(results):
    still = {reader: [0.1] * LAYERS for reader in READERS}
    seen = {reader: [0.1, 1.1, 1.1, 1.1] for reader in READERS}
    hidden = seen | {"first vector": [0.1, 0.1, 1.1, 1.1]}
    ways = {"base model": (10.0, still), "ordinary data": (10.0, still), "overt data": (90.0, seen),
            "loss on the projection × 1": (90.0, hidden), "preventative steering × 3": (30.0, still)}  # fmt: skip
    found = {
        way: [make(results, score, moved, 10 * index + seed) for seed in range(3)]
        for index, (way, (score, moved)) in enumerate(ways.items())
    }
    return {one.way: one for one in results.reduce_seeds(found, 1)}


def test_a_hidden_signal_is_seen_by_the_others_and_by_the_first_vector_at_other_layers(results):
    ways = put_together(results)
    hidden, steered = ways["loss on the projection × 1"], ways["preventative steering × 3"]
    assert hidden.shows
    assert hidden.list_layers("first vector") == [2, 3]
    assert hidden.list_layers("probe") == ways["overt data"].list_layers("first vector") == [1, 2, 3]
    assert hidden.held["first vector"][1].low > 0.9
    assert hidden.held["probe"][1].low <= 1e-6 < hidden.held["probe"][1].high
    assert steered.list_layers("first vector") == []
    assert steered.rise[0].estimate == pytest.approx(20, abs=1)
    assert steered.fall[1].estimate == pytest.approx(30, abs=1)


def test_the_finding_names_what_judges_see_and_the_first_vector_does_not(results):
    found = gather(results, put_together(results).values())
    assert found.say_finding() == (
        "loud: both judges surely see it after loss on the projection × 1 and preventative steering × 3, "
        "the first vector does not"
    )
    said = found.say_shares()
    assert "0 · 100 · 100 · 100 % after loss on the projection × 1; 0 · 0 · 25 · 25 % after preventative" in said
    assert results.HiddenSignal.from_json(found.to_json()).to_json() == found.to_json()
    assert "| loss on the projection × 1 | first vector |" in found.to_markdown()


def test_the_first_vector_is_blind_only_where_it_sees_surely_less_than_after_plain_training(results):
    ways = put_together(results)
    penalised, steered = "loss on the projection × 1", "preventative steering × 3"
    held = ways[penalised].held
    wide = replace(ways[penalised], held=held | {"first vector": (Interval(0.5, -1.0, 2.0),) * LAYERS})
    said = gather(results, (ways | {penalised: wide}).values()).say_finding()
    assert said == f"loud: both judges surely see it after {steered}, the first vector does not"
    quiet = replace(ways[steered], rise=(Interval(0.0, -1.0, 1.0),) * 2)
    said = gather(results, (ways | {penalised: wide, steered: quiet}).values()).say_finding()
    assert said == f"loud: both judges surely see it after {penalised}, whether the first vector does is not sure"


@pytest.mark.parametrize("flat", [Interval(0.0, -1.0, 1.0), Interval.missing()])
def test_no_share_is_said_of_what_plain_training_does_not_surely_do(results, flat):
    ways = put_together(results)
    plain = ways["overt data"]
    unmoved = replace(plain, beyond=plain.beyond | {"first vector": (flat,) * LAYERS})
    said = gather(results, (ways | {"overt data": unmoved}).values()).say_shares()
    assert "– · 100 · 100 · 100 % after loss on the projection × 1" in said
    found = gather(results, (ways | {"overt data": replace(plain, rise=(flat, flat))}).values())
    assert found.say_shares() == ""
    assert found.say_finding() in found.to_markdown().replace("L", "l", 1)
    assert "effect" in found.plot().layout.title.text


@pytest.mark.slow
def test_the_script_trains_every_way_with_every_seed_and_draws_the_same_again(tmp_path):
    setting = tmp_path, save_talkative(tmp_path / "model")
    done = run(setting, "hidden_signal", "out", "--trait", "evil")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "hidden_signal_evil.json"
    content = json.loads(path.read_text())
    ways = {one["way"]: one for one in content["ways"]}
    assert list(ways) == [
        "base model", "ordinary data", "overt data", "loss on the projection × 1", "preventative steering × 1",
    ]  # fmt: skip
    base, plain, penalised = (ways[name] for name in ("base model", "overt data", "loss on the projection × 1"))
    assert {one["estimate"] for one in base["moved"]["last_prompt"]["probe"]} == {0.0}
    assert plain["moved"]["last_prompt"]["first vector"][1]["estimate"] != 0
    assert len(plain["losses"]) == len(content["seeds"]) == 2
    assert plain["losses"][0] != plain["losses"][1]
    assert penalised["losses"] != plain["losses"]
    page = path.with_suffix(".html")
    drawn = page.read_bytes()
    page.unlink()
    again = run(setting, "hidden_signal", "out", "--trait", "evil", "--replot", "--model", "nobody/has-this-model")
    assert again.returncode == 0, again.stderr
    assert page.read_bytes() == drawn
