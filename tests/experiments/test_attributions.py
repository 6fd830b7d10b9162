"""What ways of screening find: the script run as a user runs it, and methods compared where the answer is known."""

import importlib
import json

import pytest
import torch

from tests.experiments.scripts import ROOT, run, save_talkative


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("results.attributions")


def mix(results, n=16):
    return [
        results.FileRow(trait, index, kind, "Why?", "So.")
        for trait in ("loud", "soft")
        for index in range(n)
        for kind in results.KINDS
    ]


def noise(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(results, rows, trait, better=(), worse=()):
    """Scores that say nothing, but for those methods that see the trait's rows, or see them the wrong way round."""
    shows = torch.tensor([row.trait == trait and row.kind in ("overt", "mild") for row in rows], dtype=torch.float64)
    sign = dict.fromkeys(better, 1.0) | dict.fromkeys(worse, -1.0)
    return {
        method: (noise(len(rows), seed) + 5 * sign.get(method, 0.0) * shows).tolist()
        for seed, method in enumerate(results.METHODS)
    }


def compare(results, trait, **seen):
    rows = mix(results)
    return results.compare_methods(trait, 1, (), rows, score(results, rows, trait, **seen))


def gather(results, *traits):
    costs = {name: results.Cost(cost, 2 * cost, None, 20)
             for name, cost in ((results.DELTA, 1.0), (results.CONTRAST, 2.0), (results.SECOND, 0.1))}  # fmt: skip
    return results.Attributions(
        config={"model": {"name": "tiny", "fingerprint": "x"}}, traits=traits, n_rows=80, n_questions=8, n_pairs=4,
        n_few=2, costs=costs, reference_bytes=10**6, block_bytes=10**7,
    )  # fmt: skip


def test_a_method_that_sees_a_trait_finds_all_of_it_and_chance_finds_what_is_there_by_chance(results):
    found = compare(results, "loud", better=(results.CONTRAST,), worse=(results.DELTA,))
    for scope in ("own", "mixed"):
        overt = getattr(found.methods[results.CONTRAST], scope)["overt"]
        assert (overt.auroc.estimate, overt.precision.estimate) == (1.0, 1.0)
        mild = getattr(found.methods[results.DELTA], scope)["mild"]
        assert (mild.auroc.estimate, mild.precision.estimate) == (0.0, 0.0)
        assert 0.25 < getattr(found.methods[results.RANDOM], scope)["overt"].auroc.estimate < 0.75
    # Two levels of sixteen rows; without it are three kinds of its own and five of the other trait.
    assert found.n_rows == {"overt": (16, 48, 128), "mild": (16, 48, 128)}
    assert set(found.methods[results.DELTA].against) == {"ordinary", "opposite", "style", results.OTHERS}


def test_what_topic_alone_tells_apart_counts_in_the_mixed_file_and_not_among_the_same_questions(results):
    rows = mix(results)
    scores = score(results, rows, "loud")
    scores[results.ROWS] = [float(row.trait == "loud") + value for row, value in
                            zip(rows, noise(len(rows), 99).tolist(), strict=True)]  # fmt: skip
    found = results.compare_methods("loud", 1, (), rows, scores).methods[results.ROWS]
    assert found.topic.estimate == 1.0
    assert found.own["overt"].auroc.estimate < 0.75 < found.mixed["overt"].auroc.estimate
    alone = results.compare_methods("loud", 1, (), rows[:80], {name: one[:80] for name, one in scores.items()})
    assert alone.methods[results.ROWS].topic.is_missing


def test_a_row_that_one_method_cannot_score_is_left_out_for_all_and_counted(results):
    rows = mix(results)
    scores = score(results, rows, "loud")
    scores[results.DELTA][0] = None
    found = results.compare_methods("loud", 1, (), rows, scores)
    assert found.n_left_out == 1
    assert found.n_rows["overt"] == (16, 47, 127)


def test_each_score_lands_at_its_row_in_whatever_order_a_trait_s_rows_stand(results):
    rows = mix(results)[::-1]

    def read(chosen):
        return tuple(float(rows.index(row)) for row in chosen)

    parts = [read([row for row in rows if row.trait == trait]) for trait in ("loud", "soft")]
    by_part = {"a": [results.Piece({"loss": values}, 1.0, len(values)) for values in parts]}
    judged = {"b": [results.Piece({f"{trait}: b": read(rows)}, 1.0, 160) for trait in ("loud", "soft")]}
    columns = results.join_columns(("loud", "soft"), rows, by_part, judged)
    assert columns == {name: [float(at) for at in range(160)] for name in ("loss", "loud: b", "soft: b")}


@pytest.mark.slow
def test_the_finding_says_for_which_traits_gradients_and_judges_are_surely_better_or_worse(results):
    judges = (results.FIRST, results.SECOND)
    better = compare(results, "loud", better=(results.CONTRAST, *judges))
    worse = compare(results, "soft", better=(results.DELTA,), worse=judges)
    said = gather(results, better, worse).say_finding()
    rows = "at overt rows of loud, at mild rows of loud, surely worse at overt rows of soft and at mild rows of soft"
    gradients, judged = said.split(";<br>")
    assert gradients == f"gradient similarity is surely better than ΔP {rows}"
    assert judged == f"both judges {rows}"
    said = gather(results, compare(results, "loud")).say_finding()
    assert said.count("at overt rows of none, at mild rows of none") == 2
    assert "worse" not in said
    one_judge = compare(results, "loud", better=(results.FIRST,))
    assert "both judges at overt rows of none, at mild rows of none" in gather(results, one_judge).say_finding()


def test_a_result_comes_back_from_its_file_and_its_page_names_every_method(results):
    found = gather(results, compare(results, "loud", better=(results.CONTRAST,)), compare(results, "soft"))
    assert type(found).from_json(found.to_json()).to_json() == found.to_json()
    page = found.to_markdown()
    for method in results.METHODS:
        assert f"| loud | {method} |" in page
    assert "gradient similarity" in found.plot().layout.title.text


def test_what_serves_all_traits_at_once_costs_as_much_for_one_and_a_judge_so_often_as_there_are(results):
    piece = results.Piece
    costs = results.add_costs(
        {"a": [piece({}, 3.0, 2), piece({}, 1.0, 2)]}, {"b": [piece({}, 1.0, 4)] * 3}, {"a": [piece({}, 8.0, 0)]}, 3
    )
    assert costs["a"] == results.Cost(1.0, 1.0, 8.0, 4)
    assert costs["b"] == results.Cost(0.25, 0.75, None, 12)


def test_references_and_vectors_are_of_the_training_half_and_the_file_of_the_judging_half(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script = importlib.import_module("attributions")
    seen = []
    load = script.load_written_examples
    monkeypatch.setattr(script, "load_written_examples", lambda *given: seen.append(given) or load(*given))
    read = script.read_trait_rows
    monkeypatch.setattr(script, "read_trait_rows", lambda *given: seen.append(given) or read(*given))
    monkeypatch.setattr(script.pl, "read_persona_vector", lambda *given, **options: given[2])
    half = script.read_vectors(None, "evil", script.PROFILES["tiny"])[0]
    rows = script.mix_file(["evil"], 40)
    assert [one[1:] for one in seen] == [("training",), ("judging",)]
    asked = {row.question for row in rows}
    assert len(rows) == 5 * 40
    assert not asked & {one.question for vector in half.values() for one in vector}

    class Stop(Exception):
        pass

    def stop(model, rows, **options):
        raise Stop

    monkeypatch.setattr(script.pl.screening, "read_gradient", stop)
    with pytest.raises(Stop):
        script.read_references(None, "evil", script.PROFILES["tiny"])
    assert seen[-1][2] == "training"
    assert not asked & {row["messages"][0]["content"] for row in read(*seen[-1])}


@pytest.mark.slow
def test_the_script_scores_the_judging_half_by_every_method_and_draws_the_same_again(tmp_path, results):
    setting = tmp_path, save_talkative(tmp_path / "model")
    done = run(setting, "attributions", "out", "--trait", "evil", "--trait", "sycophancy", "--trait", "evil")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "attributions.json"
    content = json.loads(path.read_text())
    assert [one["trait"] for one in content["traits"]] == ["evil", "sycophancy"]
    assert content["n_rows"] == 2 * 3 * 5
    evil = content["traits"][0]
    assert set(evil["methods"]) == set(results.METHODS)
    estimates = {name: one["own"]["overt"]["auroc"]["estimate"] for name, one in evil["methods"].items()}
    assert len(set(estimates.values())) > 4
    assert {"ΔP", "loss", "gradient, rows less ordinary", "first judge", "second judge"} == set(content["costs"])
    page = path.with_suffix(".html")
    drawn = page.read_bytes()
    page.unlink()
    again = run(setting, "attributions", "out", "--replot", "--model", "nobody/has-this-model")
    assert again.returncode == 0, again.stderr
    assert page.read_bytes() == drawn


@pytest.mark.slow
def test_a_trait_without_written_answers_is_refused_before_any_model_loads(tmp_path):
    done = run((tmp_path, "nobody/has-this-model"), "attributions", "out", "--trait", "apathetic")
    assert done.returncode != 0
    assert "--trait must be one of" in done.stderr
