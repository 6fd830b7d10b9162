import importlib
import json
import re
import typing

import pytest
import torch
import tyro

import persona_lens as pl
from tests.experiments.scripts import ROOT, run, write_traits
from tests.small_trait import tiny_trait

pytestmark = pytest.mark.slow  # whole scripts, each run as a user runs it

# Each script with what it needs to run, and the files that must come out the same.
SCRIPTS = {
    "token_positions": (["loud.json"], ["token_positions_loud.json", "token_positions_loud.html"]),
    "vector_stability": (["loud.json"], ["vector_stability_loud.json", "vector_stability_loud.html"]),
    "steering_modes": (["loud.json", "--layer", "1"], ["steering_modes_loud.json", "steering_modes_loud.html"]),
    "trait_geometry": (
        ["loud.json", "--trait", "soft.json"],
        ["trait_geometry.json", "trait_geometry.html", "trait_geometry_tokens.html"],
    ),
}
each_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_folder):
    """A tiny random model and small traits: every step is real, nothing means anything."""
    folder = tmp_path_factory.mktemp("steering")
    write_traits(folder)
    return folder, tiny_folder("llama")


@pytest.fixture(scope="module")
def whole(setting):
    """Each script run once, into a folder of its own."""
    contents = {}
    for script, (arguments, results) in SCRIPTS.items():
        done = run(setting, script, f"whole-{script}", "--trait", *arguments)
        assert done.returncode == 0, done.stderr
        contents[script] = json.loads((setting[0] / f"whole-{script}" / results[0]).read_text())
    return contents


@each_script
def test_results_hold_configuration_seed_versions_and_a_figure(setting, whole, script):
    config = whole[script]["config"]
    assert config["seed"] == 0
    assert config["versions"]["torch"]
    assert config["profile"]["max_new_tokens"] == 6
    page = (setting[0] / f"whole-{script}" / SCRIPTS[script][1][1]).read_text()
    assert "Plotly.newPlot" in page
    assert str(setting[0]) not in json.dumps(whole[script])


@each_script
def test_replot_draws_the_same_figure_from_the_file_without_a_model(setting, whole, script):
    folder = setting[0] / f"whole-{script}"
    pages = {folder / name: (folder / name).read_bytes() for name in SCRIPTS[script][1][1:]}
    for page in pages:
        page.unlink()
    more = ["--replot", "--model", "nobody/has-this-model"]
    done = run(setting, script, f"whole-{script}", "--trait", *SCRIPTS[script][0], *more)
    assert done.returncode == 0, done.stderr
    assert {page: page.read_bytes() for page in pages} == pages


def test_directions_of_every_token_position_are_tried_at_every_layer_and_coefficient(whole):
    content = whole["token_positions"]
    tried = [(row["direction"], row["layer"], row["coefficient"]) for row in content["settings"]]
    names = ("response_mean", "prompt_mean", "last_prompt", "random")
    assert tried == [(name, layer, c) for name in names for layer in (1, 2) for c in (1.0, 2.0)]
    assert content["n_responses"] == 4 * (1 + len(tried))
    for row in (content["unsteered"], *content["settings"]):
        for key in ("score", "coherence"):
            # The interval of a few questions may reach beyond the scale.
            assert row[key]["low"] <= row[key]["estimate"] <= row[key]["high"]
            assert 0 <= row[key]["estimate"] <= 100


def test_the_mean_difference_of_token_positions_is_that_of_their_settings(whole):
    content = whole["token_positions"]

    def mean(name):
        return sum(r["score"]["estimate"] for r in content["settings"] if r["direction"] == name) / 4

    for name, difference in content["response_mean_less"].items():
        expected = mean("response_mean") - mean(name)
        assert difference["score"]["estimate"] == pytest.approx(expected, abs=1e-3)


def test_every_mode_is_scored_and_costs_are_measured_against_the_unsteered_model(whole):
    content = whole["steering_modes"]
    rows = [(row["way"], row["method"], row["strength"]) for row in content["settings"]]
    assert rows == [
        ("up", "unsteered", ""), ("up", "one layer", "+1"), ("up", "all layers", "+1"), ("up", "capping", "floor 90 %"),
        ("down", "unsteered", ""), ("down", "one layer", "-1"), ("down", "all layers", "-1"),
        ("down", "capping", "ceiling 10 %"), ("down", "ablation", ""),
    ]  # fmt: skip
    for row in content["settings"]:
        if row["method"] == "unsteered":
            assert row["kl"] is None
        else:
            assert row["kl"]["estimate"] > 0
        assert 0 <= row["accuracy"]["estimate"] <= 1
    for way, sign in (("up", 1), ("down", -1)):
        for method, furthest in content["furthest"][way].items():
            scores = [
                sign * row["chosen_by"]["score"]["estimate"]
                for row in content["settings"]
                if (row["way"], row["method"]) == (way, method) and row["chosen_by"]["coherence"]["low"] >= 50
            ]
            chosen = sign * furthest["chosen_by"]["score"]["estimate"] if furthest else None
            assert chosen == max(scores, default=None)
    # What is reported was measured on the questions that did not choose.
    assert content["n_questions"] == len(content["config"]["trait"]["evaluation_questions"]) // 2
    assert any(row["score"] != row["chosen_by"]["score"] for row in content["settings"])


def test_a_mode_acts_on_rollouts_as_its_hooks_act_on_a_forward_pass(tiny_model, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import steering_modes as script

    sampling = pl.Sampling(max_new_tokens=6)
    vector = pl.extract_persona_vector(tiny_model, tiny_trait(), judge="none", sampling=sampling)
    ordinary = pl.measure_ordinary_projections(tiny_model, vector, questions=["Who?", "Why?"], sampling=sampling)
    tokens = tiny_model.to_tokens("Some words", prepend_bos=False)
    plain = tiny_model(tokens)
    for way in ("up", "down"):
        for mode in script.list_modes(vector, ordinary, 1, way, script.PROFILES["tiny"]):
            by_hand = [
                (f"blocks.{step.layer}.hook_resid_post", lambda h, hook, step=step: step.operation(h))
                for step in mode.intervention.steps
            ]
            expected = tiny_model.run_with_hooks(tokens, fwd_hooks=by_hand)
            found = tiny_model.run_with_hooks(tokens, fwd_hooks=pl.interventions.intervention_hooks(mode.intervention))
            torch.testing.assert_close(found, expected)
            assert torch.equal(found, plain) == (mode.method == "unsteered")


def test_cosines_of_traits_are_symmetric_with_ones_on_the_diagonal(whole):
    cosines = torch.tensor(whole["trait_geometry"]["cosines"])
    assert cosines.shape == (3, 2, 2)
    assert torch.equal(cosines, cosines.transpose(1, 2))
    torch.testing.assert_close(torch.diagonal(cosines, dim1=1, dim2=2), torch.ones(3, 2))
    assert float(cosines[:, 0, 1].abs().max()) < 0.999


def test_written_tokens_are_those_that_the_direction_as_last_residual_would_favour(tiny_model, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import trait_geometry as script

    direction = torch.randn(48, generator=torch.Generator().manual_seed(1))
    vector = pl.PersonaVector("loud", pl.describe_model(tiny_model), {"response_mean": direction.expand(3, 48)})
    found = script.read_tokens(tiny_model, vector, 1)
    assert found.layer == 1
    logits = ((direction * tiny_model.ln_final.w) @ tiny_model.W_U).detach()
    best, worst = int(logits.argmax()), int(logits.argmin())
    assert found.promoted[0][0] == tiny_model.tokenizer.decode([best])
    assert found.suppressed[0][0] == tiny_model.tokenizer.decode([worst])
    scores = (logits - logits.mean()) / logits.std()
    assert found.promoted[0][1] == pytest.approx(float(scores[best]), abs=0.006)
    assert found.suppressed[0][1] == pytest.approx(float(scores[worst]), abs=0.006)
    assert [value for _, value in found.promoted] == sorted((v for _, v in found.promoted), reverse=True)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("token_positions", [], "--trait is missing"),
        ("token_positions", ["--trait", "nobody"], "evil"),
        ("steering_modes", [], "--trait is missing"),
        ("steering_modes", ["--trait", "loud.json", "--layer", "3"], "[0, 3)"),
        ("steering_modes", ["--trait", "loud.json", "--replot"], "Run once without --replot"),
        ("trait_geometry", ["--trait", "loud.json"], "at least twice"),
        ("trait_geometry", ["--trait", "loud.json", "--trait", "soft.json", "--layer", "3"], "[0, 3)"),
    ],
)
def test_bad_arguments_end_with_what_to_do_before_anything_is_written(
    setting, script, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = importlib.import_module(script)
    folder, model = setting
    arguments = [str(folder / word) if word.endswith(".json") else word for word in arguments]
    where = ["--model", model, "--tiny", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    given = tyro.cli(typing.get_type_hints(module.main)["arguments"], args=[*arguments, *where])
    with pytest.raises((SystemExit, pl.errors.PersonaLensError), match=re.escape(words)):
        module.main(given)
    assert list(tmp_path.iterdir()) == []
