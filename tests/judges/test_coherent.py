"""One judge's scores beside another's coherence."""

import pytest

from persona_lens.judges import CoherentJudge, Judgement


class Told:
    """Says what it was told to, whatever is asked."""

    def __init__(self, name, *judgements):
        self.name, self.identity, self.judgements = name, f"told {name}", judgements

    def score(self, questions, responses):
        return list(self.judgements)


def test_scores_are_the_first_judges_and_coherence_the_seconds():
    both = CoherentJudge(Told("one", Judgement(80.0, 5.0)), Told("two", Judgement(10.0, 60.0)))
    assert both.score(["Why?"], ["x"]) == [Judgement(80.0, 60.0)]
    assert both.name == "one"


@pytest.mark.parametrize("failing", [0, 1])
def test_where_a_judge_gives_a_reason_for_none_it_is_kept(failing):
    said = [Judgement(80.0, 60.0), Judgement(80.0, 60.0)]
    said[failing] = Judgement(None, None, "too long", retryable=True)
    (found,) = CoherentJudge(*(Told(str(i), one) for i, one in enumerate(said))).score(["Why?"], ["x"])
    assert (found.reason, found.retryable) == ("too long", True)
    assert (found.score, found.coherence) == ((None, 60.0), (80.0, None))[failing]


def test_its_identity_changes_with_either_judges():
    one, two, three = (Told(name) for name in ("one", "two", "three"))
    assert len({CoherentJudge(a, b).identity for a, b in ((one, two), (one, three), (three, two))}) == 3
