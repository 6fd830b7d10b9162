"""Good traits in place of bad ones: verdicts where the answer is known, and the script run as a user runs it."""

import importlib
import json
from dataclasses import replace

import pytest
import torch

from persona_lens.reproduction.ways import Strength
from tests.experiments.scripts import ROOT, run, save_talkative

CONDITIONS = {
    "unsteered": 50.0, "−evil": 10.0, "+empathy": 20.0, "random direction 1": 49.0, "random direction 2": 51.0,
    "prompt for empathy": 40.0,
}  # fmt: skip
LEFT = {
    "before training": 10.0, "no prevention": 90.0, "+bad in training": 40.0, "−good in training": 60.0,
    "+good in training": 95.0, "random in training": 85.0, "−bad afterwards": 70.0, "+good afterwards": 50.0,
    "random afterwards": 88.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("results.positive_traits")


def spread(*means):
    """Six values around each of some means, other ones for each but of exactly that mean."""
    noise = torch.randn(len(means), 6, generator=torch.Generator().manual_seed(0))
    return torch.tensor(means)[:, None] + noise - noise.mean(dim=1, keepdim=True)


def steer(results, changed=(), second=()):
    """Answers that both judges score alike, but for what is changed of both or of the second one alone."""
    first = CONDITIONS | dict(changed)
    judges = torch.stack([spread(*first.values()), spread(*(first | dict(second)).values())])
    return results.SteeredAnswers(
        tuple(first), tuple("abcdef"), {"evil": judges, "empathy": 100 - judges}, judges[0], dict.fromkeys(first, "No.")
    )


def train(results, changed=(), second=()):
    first = LEFT | dict(changed)
    trained = []
    for seed in range(3):
        for way, score in first.items():
            pair = spread(score + seed, (first | dict(second))[way] + seed)
            held_out = {"task": spread(1.0)[0], "ordinary answers": spread(2.0)[0]}
            losses = () if way == "before training" else (2.0, 1.0)
            trained.append(
                results.MeasuredWay(way, seed, {"evil": pair, "empathy": 100 - pair}, held_out, losses, "No.",
                                    {"training": 60.0})
            )  # fmt: skip
    return tuple(trained)


def gather(results, steered=None, trained=None):
    one = results.TriedTrait("evil", ("empathy",), steered or steer(results), trained or train(results))
    names = {"evil": ("a, partly valid for evil", "b, valid for evil"), "empathy": ("a", "b")}
    profile = {"divergence": 0.2, "training_divergence": 0.3, "n_random": 2, "n_rows": 24, "n_task": 8}
    return results.PositiveTraits(
        config={"model": {"name": "tiny", "fingerprint": "0"}, "profile": profile}, layer=1, judge_names=names,
        strengths={name: Strength(1.0, 0.2) for name in ("−evil", "+empathy", "random direction 1")},
        training_strengths={}, capabilities={}, traits=(one,),
    )  # fmt: skip


def test_a_good_trait_lowers_a_bad_one_where_both_judges_see_it_below_unsteered_and_below_random(results):
    both = gather(results).say_steering()
    assert both == (
        "steering towards the good surely lowers the bad for 1 of 1 pairs (evil by empathy), "
        "steering away from the bad for evil"
    )


@pytest.mark.parametrize(
    "changed",
    [{"second": {"+empathy": 50.0}}, {"changed": {"random direction 1": 19.0, "random direction 2": 21.0}}],
    ids=["one judge alone sees it", "random directions do it too"],
)
def test_what_one_judge_sees_or_random_directions_do_too_is_not_claimed(results, changed):
    said = gather(results, steer(results, **changed)).say_steering()
    assert said.startswith("steering towards the good surely lowers the bad for none of 1 pairs,")


def test_differences_are_those_of_the_scores(results):
    steered = steer(results)
    assert [one.estimate for one in steered.change("evil", "+empathy")] == pytest.approx([-30.0] * 2, abs=1e-3)
    assert [one.estimate for one in steered.change("empathy", "+empathy")] == pytest.approx([30.0] * 2, abs=1e-3)
    assert [one.estimate for one in steered.change_of_random("evil")] == pytest.approx([0.0] * 2, abs=1e-3)
    assert [one.estimate for one in steered.above_random("evil", "−evil")] == pytest.approx([-40.0] * 2, abs=1e-3)
    assert steered.find_coherence("random direction").estimate == pytest.approx(50.0)


def test_promotion_that_leaves_more_than_prevention_is_said_to_do_so(results):
    assert gather(results).say_training() == (
        "surely kept out: evil by +bad in training, −good in training, −bad afterwards and +good afterwards, "
        "−good in training leaves surely more of evil than +bad in training"
    )


def test_where_the_judges_do_not_both_see_a_difference_neither_is_better(results):
    alike = gather(results, trained=train(results, second={"−good in training": 40.0}))
    assert alike.say_training().endswith("whether −good in training or +bad in training leaves less is not sure")
    best = gather(results, trained=train(results, changed={"−good in training": 15.0}))
    assert best.say_training().endswith("−good in training leaves surely less of evil than +bad in training")


def test_a_push_keeps_nothing_out_that_a_random_one_keeps_out_too(results):
    random = gather(results, trained=train(results, changed={"random in training": 40.0}))
    assert random.say_training().startswith("surely kept out: evil by −bad afterwards and +good afterwards,")
    both = train(results, changed={"random in training": 40.0, "random afterwards": 50.0, "−bad afterwards": 89.0})
    assert gather(results, trained=both).say_training().startswith("none of 4 ways surely keeps the bad out,")


def test_where_training_does_not_surely_raise_the_trait_nothing_is_said_to_be_kept_out(results):
    harmless = gather(results, trained=train(results, second={"no prevention": 10.0}))
    assert harmless.say_training() == "training on bad answers surely raises no bad trait for both judges"


def test_losses_are_compared_row_by_row(results):
    one = gather(results).traits[0]
    assert one.loss("no prevention", "task").estimate == pytest.approx(1.0, abs=1e-4)
    assert one.costs("−good in training", "no prevention", "task").high == pytest.approx(0.0, abs=1e-6)


def test_the_result_comes_back_from_its_file_and_its_tables_say_what_is_found(results):
    found = gather(results)
    again = results.PositiveTraits.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.judges == {"evil": "b, valid for evil"}
    page = found.to_markdown()
    assert "| evil | **+empathy** | -30 [" in page
    assert "| evil | random directions |" in page
    assert "| evil | −good in training less +bad in training | 20 [" in found.training_to_markdown()
    assert "All 24: 24 minutes" in found.training_to_markdown()
    assert found.say_training() in found.plot_training().layout.title.text.replace("<br>", " ")


def test_every_pair_that_is_fixed_beforehand_is_of_written_traits(results):
    assert all(good in results.GOOD for goods in results.MATCHED.values() for good in goods)
    lacking = replace(gather(results), strengths={})
    assert lacking.list_pairs() == []


@pytest.mark.slow
def test_the_script_steers_and_trains_every_way_and_draws_the_same_again(tmp_path):
    setting = tmp_path, save_talkative(tmp_path / "model")
    done = run(setting, "positive_traits", "out", "--trait", "evil")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "positive_traits.json"
    content = json.loads(path.read_text())
    (one,) = content["traits"]
    assert one["steered"]["conditions"][:3] == ["unsteered", "−evil", "+empathy"]
    assert content["strengths"]["+empathy"]["kl"] == pytest.approx(0.001, rel=0.1)
    ways = {(way["way"], way["seed"]): way for way in one["trained"]}
    assert len(ways) == len(one["trained"]) == 9 * 2
    plain, promoted, afterwards = (ways[way, 0] for way in ("no prevention", "−good in training", "+good afterwards"))
    assert plain["losses"] != promoted["losses"]
    assert plain["losses"] != ways["no prevention", 1]["losses"]
    assert plain["losses"] == afterwards["losses"]
    assert plain["held_out"]["task"] != afterwards["held_out"]["task"]
    assert [len(rows) for rows in plain["held_out"].values()] == [3, 3]
    pages = [path.with_suffix(".html"), path.with_name("positive_traits_training.html")]
    drawn = [page.read_bytes() for page in pages]
    again = run(setting, "positive_traits", "out", "--replot", "--model", "nobody/has-this-model")
    assert again.returncode == 0, again.stderr
    assert [page.read_bytes() for page in pages] == drawn


@pytest.mark.slow
def test_a_good_trait_is_refused_as_a_bad_one_before_a_model_is_loaded(tmp_path):
    done = run((tmp_path, "nobody/has-this-model"), "positive_traits", "out", "--trait", "empathy")
    assert done.returncode != 0
    assert "--trait must be one of evil, hallucination, sycophancy, the bad ones. Got empathy." in done.stderr
