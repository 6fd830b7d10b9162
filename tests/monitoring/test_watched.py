import plotly.graph_objects as go
import pytest

from persona_lens.errors import InvalidArgumentError
from persona_lens.monitoring import PersonaMonitor, TraitMonitor
from tests.monitoring.examples import CHAT, LAYERS


def test_a_watched_conversation_shows_itself_escaped_and_draws_its_numbers(model, monitor):
    watched = monitor.watch(model, CHAT)
    assert "2 turns" in repr(watched)
    assert "Who &lt;b&gt;?" in watched._repr_html_()
    assert "<b>?" not in watched._repr_html_()
    figure = watched.plot()
    assert isinstance(figure, go.Figure)
    drawn = [trace.y for trace in figure.data]
    for name in LAYERS:
        assert tuple(r.projection for r in watched.of(name)) in drawn
    lines = {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1}
    assert lines == {threshold for trait in monitor.traits for threshold in trait.thresholds}
    assert "Who <b>?" not in figure.to_html(include_plotlyjs=False)
    with pytest.raises(InvalidArgumentError, match="watched"):
        watched.of("nobody")


def test_the_title_names_the_turns_above_the_ordinary(model, monitor):
    trait = monitor.traits[0]
    low = TraitMonitor("loud", 1, trait.position, trait.unit, (-1e6, -1e5), (0.5, 0.9))
    high = TraitMonitor("loud", 1, trait.position, trait.unit, (1e5, 1e6), (0.5, 0.9))
    alarmed = PersonaMonitor(monitor.model, (low,)).watch(model, CHAT)
    calm = PersonaMonitor(monitor.model, (high,)).watch(model, CHAT)
    assert "loud before turn 1, 2" in alarmed.plot().layout.title.text
    assert "above 90% of ordinary" in repr(alarmed)
    assert "Nothing above" in calm.plot().layout.title.text
    assert "alerts: none" in repr(calm)
