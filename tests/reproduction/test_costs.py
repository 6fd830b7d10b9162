import time

import pytest

from persona_lens.reproduction.costs import timed


def test_the_processors_seconds_are_noted(monkeypatch):
    monkeypatch.setattr(time, "process_time", iter([1.0, 3.5]).__next__)
    costs = {}
    with timed(costs, "work"):
        pass
    assert costs == {"work": 2.5}


def test_work_that_fails_costs_nothing_that_is_noted():
    costs = {}
    with pytest.raises(ValueError, match="no"), timed(costs, "work"):
        raise ValueError("no")
    assert costs == {}
