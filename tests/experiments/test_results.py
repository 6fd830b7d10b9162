import json
from dataclasses import replace
from pathlib import Path

import torch

from experiments.results.control_model import ControlModel
from experiments.results.trait_geometry import TraitGeometry, TraitVector, WrittenTokens
from experiments.results.trait_survey import SurveyedTrait, TraitSurvey, survey_to_markdown
from persona_lens.evaluation.confirmation import Confirmation
from persona_lens.statistics import Interval
from persona_lens.vectors.persona_vector import ExtractionCounts


def around(estimate):
    return Interval(estimate, estimate - 0.1, estimate + 0.1)


def confirm(**found):
    names = ("rise", "above_random", "coherence", "baseline_coherence", "random_coherence")
    return Confirmation(
        layer=1, coefficient=2.0, **found, **dict.fromkeys(names, around(50.0)), examples=(), n_questions=2,
        n_responses=8, n_unscored=0,
    )  # fmt: skip


def survey(*traits):
    return TraitSurvey(config={"model": {"name": "tiny"}}, traits=traits)


def test_a_survey_marks_the_traits_that_fail_and_keeps_them():
    found = confirm(baseline=around(20.0), random=around(21.0), steered=around(60.0))
    seen = {"own, valid for kind": found, "other, valid for kind": replace(found, steered=around(50.0))}
    result = survey(
        SurveyedTrait("<i>odd</i>", "no <b>pair</b> was kept", {}, None, {}),
        SurveyedTrait("kind", "", {"own": "valid", "other": "valid"}, ExtractionCounts(pairs=4, kept=3), seen),
    )
    figure = result.plot()
    assert tuple(figure.layout.yaxis.categoryarray) == ("&lt;i&gt;odd&lt;/i&gt; ✗", "kind ✓")
    steered = [tuple(trace.x) for trace in figure.data if trace.name == "steered with the vector"]
    assert steered == [(60.0,), (50.0,)]
    assert "1 of 2 traits" in figure.layout.title.text
    notes = "".join(annotation.text for annotation in figure.layout.annotations)
    assert "no &lt;b&gt;pair&lt;/b&gt; was kept" in notes
    assert {axis.title.text for axis in figure.select_xaxes()} == {"trait score (0–100), fresh questions"}
    lines = survey_to_markdown([result]).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:5]] == ["own, valid for kind", "other, valid for kind", "–"]
    assert "| kind | 3 of 4 | 1 × 2 |" in lines[2]


def test_the_survey_draws_each_interval_from_low_to_high():
    found = confirm(**dict.fromkeys(("baseline", "random", "steered"), Interval(0.8, 0.7, 0.95)))
    (trace, *_) = survey(SurveyedTrait("kind", "x", {}, None, {"own": found})).plot().data
    assert [round(length, 9) for length in trace.error_x.array] == [0.15]
    assert [round(length, 9) for length in trace.error_x.arrayminus] == [0.1]


def test_tokens_and_names_are_escaped_where_they_are_shown():
    tokens = WrittenTokens(0, (("</code><b>\n", 3.0),), (("no", -3.0),))
    traits = tuple(
        TraitVector(name, "made up", ExtractionCounts(), {}, None, (1.0,), (tokens,)) for name in ("<script>", "kind")
    )
    cosines = (((1.0, 0.2), (0.2, 1.0)),)
    found = TraitGeometry({"model": {"name": "tiny"}}, 0, 8, traits, {}, cosines)
    page = found.list_written_tokens()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;/code&gt;&lt;b&gt;\\n" in page
    assert "<script>" not in found.plot().to_json()


def test_what_a_survey_found_comes_back_from_its_file(tmp_path):
    nothing = confirm(**dict.fromkeys(("baseline", "random", "steered"), Interval.missing()))
    found = survey(SurveyedTrait("kind", "no pair was kept", {"own": "valid"}, None, {"own": nothing}))
    found.save(tmp_path / "trait_survey.json")
    again = TraitSurvey.load(tmp_path / "trait_survey.json")
    assert again.to_json() == found.to_json()
    assert again.traits[0].confirmations["own"].steered.is_missing


def test_the_figure_of_control_models_says_no_more_than_was_tested_at_each_share():
    """With the models' scores as they were, then with controls that are no lower than the spoilt models."""
    path = Path(__file__).resolve().parents[2] / "figures" / "control_model_evil.json"
    found = ControlModel.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert all(found.fall(control, judge, 0.0).low > 0 for control in found.fronts for judge in range(2))
    assert "at no share but the control itself" in found.plot().layout.title.text
    level = {control: tuple(replace(front, scores=torch.full_like(front.scores, 50.0)) for front in fronts)
             for control, fronts in found.fronts.items()}  # fmt: skip
    for fronts in (level, {**found.fronts, "base": level["base"]}):
        title = replace(found, fronts=fronts).plot().layout.title.text
        assert "at no share between" in title
        assert "control itself" not in title
