"""The commands beside ``screen``, run as a user runs them."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

import persona_lens as pl
from persona_lens.cli import arguments, main, validating
from persona_lens.cli.listing import read_ready_settings
from persona_lens.cli.main import COMMANDS
from persona_lens.models.loading import EMBEDDED_MODEL
from tests.small_trait import tiny_trait
from tests.tiny import CHATML, make_tokenizer


def run(*arguments):
    """Run the command in this process, which saves starting Python each time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return SimpleNamespace(status=ended.value.code, out=out.getvalue(), err=err.getvalue())


@pytest.mark.parametrize(
    "arguments",
    [
        ("steer", "Who?"),
        ("steer", "Who?", "--trait", "nobody"),
        ("demo", "--trait", "nobody"),
        ("extract", "--trait", "confidence", "--source", "written", "--out", "never.safetensors"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(arguments, monkeypatch):
    for module in ("choosing", "demo"):
        monkeypatch.setattr(f"persona_lens.cli.{module}.load_model", lambda *name, **given: pytest.fail("loaded"))
    assert run(*arguments).status == 2


@pytest.fixture(scope="module")
def loud(tmp_path_factory, tiny_folder):
    """A trait's file and a vector's, of a tiny model, tried nowhere."""
    folder = tmp_path_factory.mktemp("loud")
    tiny_trait().to_json(folder / "loud.json")
    model = pl.load_model(tiny_folder("llama"), device="cpu")
    directions = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    pl.PersonaVector("loud", pl.describe_model(model), {"response_mean": directions}).save(folder / "loud.safetensors")
    return SimpleNamespace(trait=folder / "loud.json", vector=folder / "loud.safetensors", model=tiny_folder("llama"))


def test_template_arguments_reach_the_model_and_what_is_no_object_is_refused_before_one_is_loaded(
    tmp_path, loud, monkeypatch
):
    tokenizer = make_tokenizer(template=CHATML + "{% if hush %}Hush! {% endif %}")
    folder = shutil.copytree(loud.model, tmp_path / "hushing")
    tokenizer.save_pretrained(folder)
    asked = ("steer", "Who?", "--vector", loud.vector, "--layer", 1, "--coefficient", 1, "--max-new-tokens", 8)
    given = (*asked, "--json", "--model", folder, "--template-arguments")
    plain, hushed = (json.loads(run(*given, value).out) for value in ("{}", '{"hush": true}'))
    assert plain["unsteered"] != hushed["unsteered"]
    done = run(*given, '{"hushed": true}')
    assert done.status == 2
    assert "which takes hush" in done.err
    monkeypatch.setattr("persona_lens.cli.choosing.load_model", lambda *name, **more: pytest.fail("loaded"))
    for wrong in ("hush", "[1]", "{hush: true}"):
        done = run(*given, wrong)
        assert done.status == 2
        assert "`--template-arguments` must be one JSON object" in done.err


def test_alone_it_teaches_what_there_is_to_do():
    done = run()
    assert done.status == 0
    for word in ("demo", "traits", "steer", "extract", "sweep", "validate", "screen", "completion"):
        assert word in done.out


def test_as_a_module_it_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "persona_lens", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"persona-lens {pl.__version__}\n"


def test_it_says_its_version():
    assert run("--version").out == f"persona-lens {pl.__version__}\n"


def test_the_traits_are_listed_for_people_and_for_programs():
    listed = json.loads(run("traits", "--json").out)["traits"]
    assert [one["trait"] for one in listed] == list(pl.list_traits())
    ready = {one["trait"] for one in listed if one["ready_vector"]}
    assert ready == set(pl.vectors.list_ready_vectors())
    shown = run("traits")
    assert shown.status == 0
    assert "sycophancy" in shown.out


def test_a_question_is_answered_as_the_model_is_and_steered(loud):
    where = ["--vector", loud.vector, "--model", loud.model, "--layer", 1, "--max-new-tokens", 6]
    found = json.loads(run("steer", "Who?", *where, "--coefficient", 30, "--json").out)
    none = json.loads(run("steer", "Who?", *where, "--coefficient", 0, "--json").out)
    assert none["unsteered"] == none["steered"] == found["unsteered"]
    assert found["steered"] != found["unsteered"]
    shown = run("steer", "Who?", *where, "--coefficient", 30)
    assert found["steered"] in shown.out
    assert "steered (loud, layer 1 × 30):" in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Who?"], "--trait"),
        (["Who?", "--vector", "{vector}", "--trait", "evil"], "--trait"),
        (["Who?", "--vector", "{vector}"], "--layer"),
        (["Who?", "--vector", "{vector}", "--layer", "1"], "--coefficient"),
        (["Who?", "--vector", "{vector}", "--layer", "9", "--coefficient", "1"], "layer"),
        ([" ", "--vector", "{vector}"], "QUESTION"),
        (["Who?", "--vector", "no such file"], "no such file"),
        (["Who?", "--trait", "evil"], "come from the model"),
    ],
)
def test_what_cannot_be_steered_ends_with_2_and_what_to_do(loud, arguments, words):
    done = run("steer", *(one.format(vector=loud.vector) for one in arguments), "--model", loud.model)
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_vector_is_extracted_from_the_models_own_responses_into_a_file(loud, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.choosing.choose_sampling", lambda model: pl.Sampling(8))
    monkeypatch.setattr(
        "persona_lens.cli.choosing.extract_persona_vector",
        lambda model, trait, *, sampling, run: pl.extract_persona_vector(
            model, trait, judge="none", sampling=sampling, run=run
        ),
    )
    out = tmp_path / "deep" / "found.safetensors"
    done = run("extract", "--trait", loud.trait, "--model", loud.model, "--out", out)
    assert done.status == 0, done.err
    assert pl.PersonaVector.load(out).trait == "loud"
    assert "persona-lens sweep" in done.out


def test_written_answers_are_read_where_there_are_some_and_asked_for_in_vain_where_not(loud, tmp_path):
    out = tmp_path / "found.safetensors"
    refused = run("extract", "--trait", loud.trait, "--source", "written", "--model", loud.model, "--out", out)
    assert refused.status == 2
    assert "--source" in refused.err
    assert not out.exists()


def test_a_sweep_chooses_and_its_vector_can_be_steered_by_at_once(loud, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.sweeping.choose_sampling", lambda model: pl.Sampling(4))
    arguments = ["--trait", loud.trait, "--vector", loud.vector, "--model", loud.model, "--layers", 0, 1]
    done = run("sweep", *arguments, "--questions", 2, "--out", tmp_path / "sweep", "--json")
    assert done.status == 0, done.err
    chosen = json.loads(done.out)
    assert chosen["layer"] in (0, 1)
    found = pl.evaluation.SweepResult.load(tmp_path / "sweep" / "sweep.json")
    assert chosen["unsteered"] == pytest.approx(float(found.baseline_scores.nanmean()), abs=1e-3)
    assert chosen["random"] == pytest.approx(found.null_interval(chosen["coefficient"]).estimate, abs=1e-3)
    assert chosen["judge"] == found.judge
    assert not re.search(r"<script[^>]* src=", (tmp_path / "sweep" / "sweep.html").read_text())
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"sweep.html", "sweep.json", "vector.safetensors"}
    where = ["--vector", tmp_path / "sweep" / "vector.safetensors", "--model", loud.model, "--max-new-tokens", 4]
    steered = json.loads(run("steer", "Who?", *where, "--json").out)
    assert (steered["layer"], steered["coefficient"]) == (chosen["layer"], chosen["coefficient"])


class LengthJudge:
    """Scores a text by its length, which says nothing of a trait."""

    name = identity = "length"

    def score(self, questions, responses):
        return [pl.judges.Judgement(min(100.0, len(text) / 5), None) for text in responses]


def test_a_judge_that_is_not_valid_ends_with_1_and_says_what_it_missed(loud, monkeypatch):
    monkeypatch.setattr(validating, "make_judge", lambda arguments, model, origin: LengthJudge())
    monkeypatch.setattr("persona_lens.cli.validating.choose_sampling", lambda model: pl.Sampling(4))
    done = run("validate", "--trait", "evil", "--model", loud.model, "--json")
    assert done.status == 1, done.err
    found = json.loads(done.out)
    assert found["verdict"] == "not valid"
    assert found["trait"] == "evil"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trait", "confidence"], "--trait"),
        (["--trait", "evil", "--judge", "endpoint"], "--judge-model"),
        (["--trait", "evil", "--judge-model", "qwen3:8b"], "--judge-model"),
    ],
)
def test_a_judge_that_cannot_be_measured_is_refused_before_any_model_runs(arguments, words, monkeypatch):
    monkeypatch.setattr(validating, "load", lambda given: pytest.fail("loaded"))
    done = run("validate", *arguments)
    assert done.status == 2
    assert words in done.err


@pytest.mark.slow
def test_the_demo_shows_both_answers_and_writes_a_page_in_which_their_text_is_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.demo.EMBEDDED_SAMPLING", pl.Sampling(8, temperature=0.7))
    page = tmp_path / "demo.html"
    done = run("demo", "--trait", "humorous", "--out", page)
    assert done.status == 0, done.err
    written = page.read_text(encoding="utf-8")
    assert "unsteered" in done.out
    assert written.count("<h3>") == 2
    answers = json.loads(run("demo", "--trait", "humorous", "--json").out)["answers"]
    assert answers[0]["unsteered"] != answers[0]["steered"]
    assert len(answers[0]["auroc"]) >= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("extract", "--trait", "humourous", "--out", "x"), "Did you mean humorous?"),
        (("extract", "--trait", "evil,honesty", "--out", "x"), "Give --trait once for each trait."),
        (("extract", "--trait", "mine.jsonl", "--out", "x"), "be an existing file of written answers"),
        (("sweep", "--trait", "evil", "--examples", "mine.jsonl", "--out", "x"), "--examples"),
        (("extract", "--trait", "mine.json", "--out", "x"), "be a bundled trait's name or an existing file"),
        (("steer", "Who?", "--trait", "optimistic"), "persona-lens sweep --trait optimistic"),
        (("steer", "Who?", "--trait", "humourous"), "Did you mean humorous? --vector FILE"),
        (("steer", "Who?", "--vector", "mine.safetensors"), "--vector"),
        (("validate", "--trait", "mine.json"), "existing file"),
        (("validate", "--trait", "confidence"), "--examples FILE.jsonl"),
    ],
)
def test_a_wrong_trait_or_file_ends_with_the_option_and_what_to_do(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.status == 2
    assert said in done.err
    assert "`--" in done.err
    assert not list(tmp_path.iterdir())


def test_through_a_pipe_tables_are_lines_with_tabs_and_nothing_is_wrapped():
    lines = run("traits").out.splitlines()
    assert lines[:2] == ["Traits", "trait\twhat it is\twritten answers\tready vector: layer × coefficient"]
    assert [line.split("\t")[0] for line in lines[2:-1]] == list(pl.list_traits())
    assert all(line.count("\t") == 3 for line in lines[1:-1])
    (evil,) = (line for line in lines if line.startswith("evil\t"))
    assert evil.split("\t")[1] == pl.load_trait("evil").description


def test_a_misspelt_command_names_the_right_one():
    done = run("extrakt", "--trait", "evil")
    assert done.status == 2
    assert "Did you mean extract?" in done.err
    assert "`persona-lens --help`" in run("fly").err


def test_what_may_be_left_out_is_named_by_its_type_alone():
    done = run("steer", "Who?", "--layer", "three")
    assert done.status == 2
    assert "--layer INT" in done.err
    assert "None}" not in run("steer", "--help").out + done.err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_fits_a_screen_or_two(command):
    done = run(command, "--help")
    assert done.status == 0
    assert f"persona-lens {command}" in done.out
    assert len(done.out.splitlines()) < 90


def test_help_and_slips_cost_no_model_library():
    code = """
import sys
from persona_lens.cli import main
for given in ("--help", "--version", "traits", "steer --help", "sweep --layr", "fly", "screen --help"):
    try:
        main(given.split())
    except SystemExit:
        pass
heavy = [name for name in ("torch", "transformers", "transformer_lens", "numpy") if name in sys.modules]
print(heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_default_model_is_the_embedded_one_and_settings_are_the_vectors():
    assert arguments.DEFAULT_MODEL == EMBEDDED_MODEL
    assert asdict(pl.conversations.ReadLimits()) == arguments.DEFAULT_LIMITS
    ready = {name: pl.load_vector(name).provenance["setting"] for name in pl.vectors.list_ready_vectors()}
    assert read_ready_settings() == ready


def write_examples(folder):
    kinds = ("ordinary", "mild", "overt", "opposite", "style")
    rows = [
        {"half": half, "question": f"{half} {i}?", **{kind: f"A {kind} answer, number {i}." for kind in kinds}}
        for half in ("training", "judging")
        for i in range(12)
    ]
    path = folder / "loud.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_extract_says_comes_next_does_work(loud, tmp_path):
    out = tmp_path / "my own.safetensors"
    made = run("extract", "--trait", write_examples(tmp_path), "--out", out, "--model", loud.model)
    assert made.status == 0, made.err
    said = " ".join(made.out.split()).split("Next: persona-lens ")[1].split(" (where")[0]
    assert run(*shlex.split(said), "--max-new-tokens", 4).status == 0


@pytest.mark.slow
def test_written_answers_of_ones_own_make_a_vector_and_judge_a_sweep(loud, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.sweeping.choose_sampling", lambda model: pl.Sampling(4))
    examples = write_examples(tmp_path)
    model = pl.load_model(loud.model)
    expected = pl.read_persona_vector(model, "loud", pl.traits.load_written_examples(examples, "training"))
    for given in (["--trait", examples], ["--trait", loud.trait, "--examples", examples]):
        done = run("extract", *given, "--out", tmp_path / "own.safetensors", "--model", loud.model)
        assert done.status == 0, done.err
        found = pl.PersonaVector.load(tmp_path / "own.safetensors")
        assert torch.equal(found.directions, expected.directions)
        assert found.trait == "loud"
    given = ["--trait", loud.trait, "--examples", examples, "--model", loud.model, "--out", tmp_path / "sweep"]
    done = run("sweep", *given, "--layers", 1, "--questions", 2, "--json")
    assert done.status == 0, done.err
    assert "reading" in json.loads(done.out)["judge"] or "layer" in json.loads(done.out)["judge"]
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"sweep.html", "sweep.json", "vector.safetensors"}
    refused = run("sweep", "--trait", examples, "--model", loud.model, "--out", tmp_path / "never")
    assert refused.status == 2
    assert "--examples" in refused.err


@pytest.mark.slow
def test_a_judge_of_ones_own_trait_is_validated_on_answers_of_ones_own(loud, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.validating.choose_sampling", lambda model: pl.Sampling(4))
    given = ["--trait", loud.trait, "--examples", write_examples(tmp_path), "--model", loud.model, "--json"]
    done = run("validate", *given)
    assert done.status in (0, 1), done.err
    found = json.loads(done.out)
    assert (found["trait"], found["n_questions"]) == ("loud", 12)


@pytest.mark.parametrize("command", ["extract", "sweep"])
def test_work_that_is_broken_off_is_gone_on_with(loud, tmp_path, monkeypatch, command):
    """Interrupted after its first shard, the second run computes the others alone."""
    monkeypatch.setattr("persona_lens.cli.choosing.choose_sampling", lambda model: pl.Sampling(4))
    monkeypatch.setattr("persona_lens.cli.sweeping.choose_sampling", lambda model: pl.Sampling(4))
    out = tmp_path / ("out" if command == "sweep" else "out.safetensors")
    given = ["--trait", loud.trait, "--model", loud.model, "--out", out]
    given += ["--vector", loud.vector, "--questions", 2] if command == "sweep" else []
    computed, seen = [], []
    keep = pl.ShardStore.load_or_compute

    def watch(store, name, compute):
        def counted():
            computed.append(name)
            return compute()

        shard = keep(store, name, counted)
        seen.append(name)
        if len(seen) == 1:
            raise KeyboardInterrupt
        return shard

    monkeypatch.setattr(pl.ShardStore, "load_or_compute", watch)
    done = run(command, *given)
    assert done.status == 130
    assert "the same command goes on where it was" in done.err
    again = run(command, *given)
    assert again.status in (0, 2), again.err  # a random model may show no trait
    assert len(seen) > len(computed), "the first shard was read, not computed again"
