"""The script that takes vectors apart, run as a user runs it."""

import json

import pytest

from tests.experiments.scripts import command, environment, run_script

pytestmark = pytest.mark.slow


def test_a_vector_is_taken_apart_and_its_features_are_steered_along(tmp_path, roomy_folder):
    pytest.importorskip("sae_lens", exc_type=ImportError)
    setting = tmp_path, roomy_folder
    done = run_script(command(setting, "sae_features", "out", "--trait", "evil"), env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "sae_features.json").read_text())
    (trait,) = found["traits"]
    assert found["n_features"] == 64
    assert len(trait["features"]) == len(trait["feature_words"]) == 3
    kinds = [name.rpartition(" ")[0] for name in trait["responses"]["conditions"]]
    assert kinds == ["", "the vector", *["nearest features"] * 3, *["random features"] * 2, *["random directions"] * 2]
    steps = found["config"]["profile"]["steps"]
    assert all(steps[0] <= step <= steps[-1] for step in trait["steps"].values())
    assert len(trait["scores"]) == 2
    assert [one["layer"] for one in trait["lens"]["layers"]] == [1, 2]
    taken = {one["feature"] for one in trait["features"]}
    assert len(taken) == 3


def test_nothing_that_the_autoencoder_is_trained_on_is_asked_by_a_trait_or_a_judge():
    from persona_lens.reproduction.autoencoder import list_training_questions
    from persona_lens.traits import list_traits, list_written_traits, load_trait, load_written_examples
    from persona_lens.traits.everyday import load_ordinary_questions

    asked = set(load_ordinary_questions())
    for name in list_traits():
        asked |= {*load_trait(name).evaluation_questions, *load_trait(name).extraction_questions}
    for name in list_written_traits():
        asked |= {one.question for half in ("training", "judging") for one in load_written_examples(name, half)}
    questions = list_training_questions()
    assert len(questions) > 400
    assert not set(questions) & asked
