"""What a layer sweep says of its choice: what every reader sees, plainly where it is little."""

from types import SimpleNamespace

import pytest

from persona_lens.evaluation import LayerChoice
from persona_lens.reproduction.layer_sweep import LayerSweep
from persona_lens.statistics import Interval

SURE, UNSURE = Interval(10.0, 5.0, 15.0), Interval(10.0, -5.0, 25.0)


def say(rises, above, judges=("a", "b")):
    """Let a sweep speak whose readers see these rises, and these differences from each null."""
    point = Interval(1.0, 1.0, 1.0)
    sweep = SimpleNamespace(
        trait="evil", choice=LayerChoice("made", 9, 2.0, point, point), readers=judges, steered="written vector",
        nulls=dict.fromkeys(above), rise=lambda judge, _: rises[judges.index(judge)],
        above=lambda judge, _, null: above[null][judges.index(judge)],
    )  # fmt: skip
    return LayerSweep.say_finding(sweep)


def test_a_rise_that_one_judge_alone_is_sure_of_is_none():
    said = say((SURE, UNSURE), {"random": (SURE, SURE)})
    assert said == "evil: layer 9 × 2 does not surely raise the score of both judges"


@pytest.mark.parametrize(
    ("random", "shuffled", "end"),
    [
        ((SURE, SURE), (SURE, SURE), "surely above random and shuffled"),
        ((SURE, SURE), (SURE, UNSURE), "surely above random"),
        ((SURE, UNSURE), (UNSURE, UNSURE), "surely above random directions for one of them alone"),
        ((UNSURE, UNSURE), (UNSURE, UNSURE), "not surely above random directions"),
    ],
)
def test_it_says_above_which_nulls_every_judge_surely_sees_it(random, shuffled, end):
    said = say((SURE, SURE), {"random": random, "shuffled": shuffled})
    assert said == f"evil: layer 9 × 2 raises the score of both judges,<br>{end}"


def test_a_single_judge_is_called_one():
    assert "the score of its one judge,<br>surely above random" in say((SURE,), {"random": (SURE,)}, judges=("a",))
