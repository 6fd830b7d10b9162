import json
from dataclasses import replace

import pytest

from persona_lens.errors import FileFormatError
from persona_lens.monitoring import GradedProjections
from persona_lens.plots import plot_monitoring
from persona_lens.statistics import Interval
from tests.monitoring.examples import make_graded


def test_graded_data_keep_their_numbers_through_json_and_appear_in_the_figure(vectors):
    data = make_graded(vectors["loud"])
    again = GradedProjections.from_json(json.loads(json.dumps(data.to_json())))
    assert again.to_json() == data.to_json()
    with pytest.raises(FileFormatError, match="layer"):
        GradedProjections.from_json({key: value for key, value in data.to_json().items() if key != "layer"})
    found = data.measure()
    figure = plot_monitoring({"system prompts": again}, {"system prompts": found}, paper={"system prompts": (0.7, 0.5)})
    assert sum(len(trace.x) for trace in figure.data) == len(data.scores)
    (panel,) = figure.layout.annotations
    assert str(found.overall) in panel.text
    assert "paper 0.700" in panel.text
    assert "inside conditions too" in figure.layout.title.text


def test_with_a_second_judge_the_title_claims_only_what_both_see(vectors):
    data = make_graded(vectors["loud"])
    found = data.measure()
    blind = replace(found, overall=Interval(0.1, -0.2, 0.3), within=Interval(0.0, -0.3, 0.3))
    for second, claim in ((found, "inside conditions too"), (blind, "nothing surely for both judges")):
        figure = plot_monitoring(
            {"shots": data}, {"shots": found}, second={"shots": second}, second_judge="sentence vectors"
        )
        (panel,) = figure.layout.annotations
        assert claim in figure.layout.title.text
        assert f"second judge: r {second.overall}" in panel.text
