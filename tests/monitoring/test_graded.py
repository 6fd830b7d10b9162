import json

import pytest

from persona_lens.errors import FileFormatError
from persona_lens.monitoring import GradedProjections
from persona_lens.plots import plot_monitoring
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
