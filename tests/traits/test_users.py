import pytest

from persona_lens.errors import InvalidArgumentError
from persona_lens.traits import UserScript, list_user_kinds, load_user_scripts

KINDS = list_user_kinds()


def test_every_kind_of_user_has_ten_turns_on_each_of_the_same_topics():
    topics = {kind: [script.topic for script in load_user_scripts(kind)] for kind in KINDS}
    assert set(KINDS) == {"neutral", "friendly", "flattering", "hostile", "confused"}
    assert len(set(topics["neutral"])) == len(topics["neutral"]) == 6
    assert all(own == topics["neutral"] for own in topics.values())
    assert all(len(script.turns) == 10 for kind in KINDS for script in load_user_scripts(kind))
    assert all(script.kind == kind for kind in KINDS for script in load_user_scripts(kind))


def test_no_turn_is_said_twice_and_each_is_a_sentence_or_two():
    turns = [turn for kind in KINDS for script in load_user_scripts(kind) for turn in script.turns]
    assert len(set(turns)) == len(turns)
    assert all(5 <= len(turn.split()) <= 25 and turn[-1] in ".?!" and turn == turn.strip() for turn in turns)


def test_kinds_of_user_say_about_as_much():
    means = [
        sum(len(turn.split()) for script in load_user_scripts(kind) for turn in script.turns) / 60 for kind in KINDS
    ]
    assert max(means) < 1.5 * min(means)


def test_the_neutral_user_asks_plain_questions():
    assert all(turn.endswith("?") for script in load_user_scripts("neutral") for turn in script.turns)


def test_another_kind_is_refused_by_name():
    with pytest.raises(InvalidArgumentError, match="`kind` must be one of neutral, friendly"):
        load_user_scripts("angry")


@pytest.mark.parametrize("turns", [(), ("",), ("Hi", " ")])
def test_a_script_without_words_is_refused(turns):
    with pytest.raises(InvalidArgumentError, match="`turns`"):
        UserScript("curt", turns)
