"""A figure whose judge is not valid says so in its title; a valid judge's figure says nothing more."""

import plotly.graph_objects as go
import pytest

from experiments.results.judge_validation import JudgeValidations
from persona_lens.judges import Contrast, JudgeValidation
from persona_lens.reproduction.verdicts import find_verdicts, say_verdicts
from persona_lens.statistics import Interval

MODEL = {"name": "small", "fingerprint": "f00d"}


def write_validations(folder, fingerprint="f00d"):
    aurocs = {"evil": 0.95, "humorous": 0.85, "formality": 0.5}
    made = tuple(
        JudgeValidation("a judge", "id", trait, (Contrast("overt v ordinary", Interval(a, a, a), 0.9),), 10)
        for trait, a in aurocs.items()
    )
    folder.mkdir(exist_ok=True)
    config = {"model": MODEL | {"fingerprint": fingerprint}}
    JudgeValidations(config, made).save(folder / "judge_validation.json")


def title(judges, verdicts):
    figure = go.Figure(layout={"title": {"text": "Finding<br><sup>what it rests on</sup>"}})
    say_verdicts(figure, judges, verdicts)
    return figure.layout.title.text


@pytest.mark.parametrize("place", ["here", "above"])
def test_verdicts_are_those_of_the_models_judges_in_the_folder_or_above_it(tmp_path, place):
    write_validations(tmp_path / "figures")
    folder = tmp_path / "figures" if place == "here" else tmp_path / "figures" / "replication"
    found = find_verdicts(folder, MODEL)
    assert found == {
        ("a judge", "evil"): "valid", ("a judge", "humorous"): "partly valid", ("a judge", "formality"): "not valid",
    }  # fmt: skip


def test_another_models_verdicts_are_not_taken(tmp_path):
    write_validations(tmp_path / "figures", fingerprint="beef")
    assert find_verdicts(tmp_path / "figures", MODEL) == {}
    assert find_verdicts(tmp_path / "nowhere", MODEL) == {}


def test_a_title_begins_with_what_keeps_its_judge_from_being_believed(tmp_path):
    write_validations(tmp_path)
    verdicts = find_verdicts(tmp_path, MODEL)
    assert title({"evil": "a judge"}, verdicts) == "Finding<br><sup>what it rests on</sup>"
    assert title({}, verdicts) == "Finding<br><sup>what it rests on</sup>"
    assert title({"formality": "a judge", "evil": "a judge"}, verdicts).startswith(
        "Judge not valid for formality · Finding<br>"
    )
    both = title({"humorous": "a judge", "<b>": "a judge", "formality": "a judge"}, verdicts)
    assert both.startswith(
        "Judge partly valid for humorous; not validated for &lt;b&gt;; not valid for formality · Finding"
    )


@pytest.mark.parametrize("verdict", ["valid", "partly valid", "not valid"])
def test_a_validated_judges_name_says_its_verdict_where_no_table_does(verdict):
    found = title({"evil": f"a judge (small), {verdict} for evil"}, {})
    assert found.startswith("Finding" if verdict == "valid" else f"Judge {verdict} for evil · Finding")
    assert title({"evil": f"a judge (small), {verdict} for humorous"}, {}).startswith("Judge not validated for evil ·")
