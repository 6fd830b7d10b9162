import importlib.util
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import persona_lens as pl
from persona_lens.statistics import Interval
from tests.anthropic_server import serve
from tests.experiments.scripts import ROOT, environment, read_plain, read_result, run_script
from tests.small_trait import tiny_trait

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

SECRET = "sk-ant-secret-for-tests"


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    folder = tmp_path_factory.mktemp("judges")
    tiny_trait().to_json(folder / "loud.json")
    return folder, roomy_folder


def run(setting, script, *arguments, **variables):
    folder, _ = setting
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments, "--out", str(folder / "out")]
    given = {key: value for key, value in environment(**variables).items() if value != ""}
    done = run_script(command, env=given, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def sweep(setting):
    folder, model = setting
    trait = str(folder / "loud.json")
    run(setting, "layer_sweep.py", "--trait", trait, "--model", model, "--tiny", "--dtype", "float32")


def test_the_survey_has_a_row_for_every_trait_and_marks_those_that_fail(setting):
    folder, model = setting
    arguments = ["--trait", str(folder / "loud.json"), "--model", model, "--tiny", "--dtype", "float32"]
    run(setting, "trait_survey.py", *arguments)
    content = json.loads((folder / "out" / "trait_survey.json").read_text())
    (row,) = content["traits"]
    assert row["trait"] == "loud"
    assert row["failure"].startswith("no judge was measured")  # it has no written examples
    assert [*row["confirmations"]] == ["likelihood judge (proxy)"]
    before = (folder / "out" / "trait_survey.html").read_bytes()
    run(setting, "trait_survey.py", "--replot")
    assert (folder / "out" / "trait_survey.html").read_bytes() == before


def agree(setting, *more, **variables):
    folder, model = setting
    run(
        setting, "judge_agreement.py", "--trait", "loud", "--model", model, "--dtype", "float32", "--n", "20",
        *more, **variables,
    )  # fmt: skip
    return read_result(folder / "out" / "judge_agreement_loud.json")


def test_the_embedded_judges_take_part_without_a_key(setting, sweep):
    content = agree(setting, ANTHROPIC_API_KEY="")
    assert content["panel"]["judges"][0] == "likelihood judge (proxy)"
    assert len(content["panel"]["judges"]) == 2  # a trait without written examples has no others that were measured
    assert not any("Claude" in name for name in content["panel"]["judges"])
    for counts in content["counts"].values():
        assert sum(counts.values()) == content["config"]["n"] == len(content["panel"]["responses"])


def test_claude_takes_part_with_a_key_a_rerun_costs_no_call_and_the_key_is_nowhere(setting, sweep):
    folder, _ = setting
    with serve() as server:
        server.answer = lambda body: json.dumps({"score": len(body["messages"][0]["content"]) % 101, "coherence": 50})
        variables = {"ANTHROPIC_API_KEY": SECRET, "ANTHROPIC_BASE_URL": server.url}
        content = agree(setting, **variables)
        asked = len(server.requests)
        again = agree(setting, **variables)
    assert any("Claude" in name for name in content["panel"]["judges"])
    assert asked == len(set(zip(content["panel"]["questions"], content["panel"]["responses"], strict=True)))
    assert len(server.requests) == asked
    assert again == content
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in read_plain(path), path
    assert "Claude" in (folder / "out" / "judge_agreement_loud.html").read_text()


def test_a_persons_spreadsheet_joins_the_panel(setting, sweep):
    folder, _ = setting
    sheet = folder / "check.csv"
    agree_arguments = ("--write-check", str(sheet))
    run(setting, "judge_agreement.py", "--trait", "loud", "--n", "20", *agree_arguments)
    lines = sheet.read_text(encoding="utf-8-sig")
    assert lines.startswith("id,question,response,score")
    content = agree(setting, "--person", str(sheet), ANTHROPIC_API_KEY="")
    assert content["panel"]["judges"][-1] == "a person"
    assert content["counts"]["a person"] == {"not scored by the person": content["config"]["n"]}


@pytest.fixture
def load_script(monkeypatch):
    """A script as a module, so that its steps can be watched."""
    monkeypatch.syspath_prepend(ROOT / "experiments")

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "experiments" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


def confirmed(low, coherence, rise):
    point = Interval(1.0, 1.0, 1.0)
    intervals = dict.fromkeys(("steered", "baseline", "random", "baseline_coherence", "random_coherence"), point)
    return pl.evaluation.Confirmation(
        layer=1, coefficient=2.0, rise=Interval(5.0, rise, 9.0), above_random=Interval(5.0, low, 9.0),
        coherence=Interval(coherence, 0.0, 100.0),
        examples=(), n_questions=2, n_responses=8, n_unscored=0, **intervals,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "low", "rise", "coherence", "failure"),
    [
        (["valid", "valid"], 1.0, 1.0, 80.0, ""),
        (["valid", "partly valid"], 1.0, 1.0, 50.0, ""),
        ([], 1.0, 1.0, 80.0, "no judge was measured"),
        (["valid", "not valid"], 1.0, 1.0, 80.0, "a judge is not valid"),
        (["valid", "valid"], -1.0, 1.0, 80.0, "steering is not surely above random directions"),
        (["valid", "valid"], 1.0, 0.0, 80.0, "steering is not surely above the unsteered model"),
        (["valid", "valid"], 1.0, 1.0, 40.0, "steered text falls below the coherence floor"),
        ([], -1.0, 1.0, 80.0, "no judge was measured; steering is not surely above random directions"),
        (
            ["valid", "valid"], 1.0, 1.0, None,
            "no setting that was tried is surely coherent; the highest score was taken",
        ),
    ],
)  # fmt: skip
def test_a_trait_works_if_both_judges_see_it_and_text_stays_coherent(
    load_script, tiny_model, monkeypatch, verdicts, low, rise, coherence, failure
):
    script = load_script("trait_survey")
    asked = {}

    def step(name, result, where=pl):
        def run(*args, **kwargs):
            asked.setdefault(name, []).append(SimpleNamespace(args=args, **kwargs))
            return result

        monkeypatch.setattr(where, name, run)

    choice = None if coherence is None else "a choice"
    validations = [SimpleNamespace(judge=f"judge {i}", verdict=one) for i, one in enumerate([*verdicts, "not valid"])]
    first, second = SimpleNamespace(name="first"), SimpleNamespace(name="second")
    judges = SimpleNamespace(
        reader="reader", choosing=first, confirming=(first, second), validations=validations if verdicts else ()
    )
    step("prepare_judges", judges, script)
    step("extract_persona_vector", SimpleNamespace(counts=pl.vectors.ExtractionCounts(4, 4)))
    step("sweep_layers", SimpleNamespace(choose_coherent=lambda: choice, choose_by_score=lambda: "highest"))
    step("confirm_choice", confirmed(low, coherence or 80.0, rise))
    row = script.survey(tiny_model, tiny_trait(), script.TINY, 0, pl.Run())
    assert (row.works, row.failure) == (not failure, failure)
    assert list(row.verdicts.values()) == verdicts
    assert [*row.confirmations] == ["first", "second"]
    (extraction,), (sweep,), confirmations = (
        asked[name] for name in ("extract_persona_vector", "sweep_layers", "confirm_choice")
    )
    assert (extraction.judge, sweep.judge) == ("reader", first)
    assert [one.judge for one in confirmations] == [first, second]
    assert sweep.questions == ("Why?", "What for?")
    for confirming in confirmations:
        assert confirming.questions == ("When?", "Which one?")
        assert confirming.args[2] == ("highest" if coherence is None else "a choice")
        assert (confirming.sampling.rollouts, confirming.random_directions) == (
            script.TINY.confirmation_rollouts, script.TINY.random_directions,
        )  # fmt: skip


def test_every_trait_of_a_survey_keeps_its_own_row(load_script, tiny_folder, tmp_path, monkeypatch):
    script = load_script("trait_survey")
    traits = [replace(tiny_trait(), name=name) for name in ("loud", "quiet")]
    arguments = script.BaseArguments(model=tiny_folder("llama"), tiny=True, dtype="float32", runs=tmp_path)

    def survey(model, trait, profile, seed, shared):
        return script.SurveyedTrait(trait.name, f"seed {seed}", {}, None, {})

    def list_rows(traits, arguments):
        return [(row.trait, row.failure) for row in script.run(traits, script.TINY, arguments).traits]

    monkeypatch.setattr(script, "survey", survey)
    assert list_rows(traits, arguments) == [("loud", "seed 0"), ("quiet", "seed 0")]
    assert list_rows(traits[::-1], replace(arguments, seed=1)) == [("quiet", "seed 1"), ("loud", "seed 1")]


@pytest.fixture
def source(tiny_model):
    """A sweep of 60 responses: most score low, four score exactly 100, some are blank."""
    scores = [[[float((7 * i + 11 * j + q) % 21) for q in range(10)] for j in range(2)] for i in range(3)]
    for q in range(4):
        scores[2][1][q] = 100.0
    responses = [[[f"r{i}{j}{q}" if q != 9 else "  " for q in range(10)] for j in range(2)] for i in range(3)]
    sweep = pl.evaluation.SweepResult(
        trait="loud", model=pl.describe_model(tiny_model), judge="made", layers=(0, 1, 2), coefficients=(1.0, 2.0),
        questions=tuple(f"q{q}" for q in range(10)), scores=torch.tensor(scores), coherences=torch.tensor(scores),
        responses=tuple(tuple(tuple(cell) for cell in row) for row in responses), baseline_scores=torch.zeros(10),
        baseline_coherences=torch.zeros(10), null_layers=(1,), null_scores=torch.zeros(1, 1, 2, 10),
        null_coherences=torch.zeros(1, 1, 2, 10), n_unscored=0, provenance={},
    )  # fmt: skip
    return sweep


def test_responses_are_drawn_whatever_their_scores_each_with_its_question(load_script, source):
    draw = load_script("judge_agreement").draw_responses
    questions, responses = draw(source, 20, 0)
    assert [f"q{response[-1]}" for response in responses] == questions
    assert len(set(responses)) == len(responses) == 20
    flipped = replace(source, scores=100 - source.scores)
    assert draw(flipped, 20, 0) == (questions, responses)
    assert draw(source, 20, 1) != (questions, responses)
    assert all(response.strip() for response in draw(source, 1000, 0)[1])
    assert len(draw(source, 1000, 0)[1]) == 54


def test_the_judges_are_those_that_other_scripts_made_and_the_model_that_of_the_sweep(
    load_script, tiny_folder, tiny_model, tmp_path, monkeypatch
):
    script = load_script("judge_agreement")
    profile = {"max_new_tokens": 4, "temperature": 0.7, "n_examples": 10}
    source = SimpleNamespace(
        config={"trait": tiny_trait().to_dict(), "profile": profile, "seed": 3},
        sweep=SimpleNamespace(model=pl.describe_model(tiny_model)),
    )
    used = []

    def stop(judges, questions, responses):
        used.extend(judges)
        raise ZeroDivisionError

    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr(pl.judges, "judge_with_panel", stop)
    arguments = script.Arguments(
        model=tiny_folder("llama"), dtype="float32", cache=tmp_path / "scores.sqlite", runs=tmp_path / "runs"
    )
    with pytest.raises(ZeroDivisionError):
        script.run(source, ["q"], ["r"], arguments)
    expected = pl.judges.calibrate_likelihood_judge(
        tiny_model, tiny_trait(), n_pairs=1, sampling=pl.Sampling(4, 0.7, seed=3)
    )
    assert used[0].judge.calibration == expected.calibration
    source.sweep.model = replace(source.sweep.model, fingerprint="another")
    with pytest.raises(SystemExit, match="--model must be that of the layer sweep"):
        script.run(source, ["q"], ["r"], arguments)
