"""Statements and questions: what is bundled is balanced, computed anew where it can be, and no word gives it away."""

import operator
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

import persona_lens as pl
from persona_lens.traits import list_statement_kinds, load_entity_questions, load_statements

each_kind = pytest.mark.parametrize("kind", list_statement_kinds())


def words(text):
    return re.findall(r"\w+", text.lower())


@each_kind
def test_a_kind_has_over_a_hundred_statements_in_which_true_and_false_take_turns(kind):
    statements = load_statements(kind)
    assert len(statements) >= 120
    assert [one.is_true for one in statements] == [True, False] * (len(statements) // 2)
    assert [one.group for one in statements] == [i // 4 for i in range(len(statements))]
    assert {one.kind for one in statements} == {kind}


def test_no_statement_stands_twice_and_all_are_sentences():
    texts = [one.text for kind in list_statement_kinds() for one in load_statements(kind)]
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(re.fullmatch(r"[A-Z0-9][^.{}]*\.", text) for text in texts)


@each_kind
def test_in_every_group_each_word_is_as_often_true_as_false(kind):
    statements = load_statements(kind)
    for group in range(len(statements) // 4):
        counts = {True: Counter(), False: Counter()}
        for one in statements[4 * group : 4 * group + 4]:
            counts[one.is_true].update(words(one.text))
        assert counts[True] == counts[False]


@each_kind
def test_words_alone_do_not_tell_true_from_false(kind):
    """A property of the balance above, seen as a reader would check it: a probe of words, on groups held out."""
    statements = load_statements(kind)
    counts = CountVectorizer(token_pattern=r"\w+").fit_transform([one.text for one in statements]).toarray()
    labels = np.array([one.is_true for one in statements])
    predicted = cross_val_predict(
        LogisticRegression(max_iter=500), counts, labels, groups=[one.group for one in statements], cv=GroupKFold(5),
        method="decision_function",
    )  # fmt: skip
    assert np.abs(predicted).max() < 1e-3


def test_sums_are_right_where_they_are_said_to_be():
    signs = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
    for one in load_statements("arithmetic"):
        first, sign, second, result = re.fullmatch(r"(\d+) (\w+) (\d+) equals (\d+)\.", one.text).groups()
        assert (signs[sign](int(first), int(second)) == int(result)) == one.is_true, one.text


@pytest.mark.parametrize("kind", ["comparisons", "negations"])
def test_numbers_compare_as_they_are_said_to(kind):
    compared = 0
    for one in load_statements(kind):
        found = re.fullmatch(r"(\d+) is (not )?(larger|smaller) than (\d+)\.", one.text)
        if found:
            first, denied, how, second = found.groups()
            holds = int(first) > int(second) if how == "larger" else int(first) < int(second)
            assert (holds != bool(denied)) == one.is_true, one.text
            compared += 1
    assert compared >= 24


def test_a_negation_is_true_where_what_it_denies_is_false():
    plain = {one.text: one.is_true for kind in list_statement_kinds() for one in load_statements(kind)}
    for one in load_statements("negations"):
        assert one.text.count(" not ") == 1
        assert plain[one.text.replace(" is not ", " is ")] != one.is_true


def test_a_conjunction_is_true_where_both_halves_are_and_either_half_may_be_wrong():
    facts = {half for one in load_statements("conjunctions") if one.is_true for half in one.text[:-1].split(" and ")}
    facts = {fact.lower() for fact in facts}
    wrong = Counter()
    for one in load_statements("conjunctions"):
        halves = [half.lower() in facts for half in one.text[:-1].split(" and ")]
        assert all(halves) == one.is_true
        wrong.update([tuple(halves)])
    assert wrong[False, True] == wrong[True, False]
    assert wrong[False, False] == 0


def test_an_unknown_kind_is_refused_with_those_that_there_are():
    with pytest.raises(pl.errors.InvalidArgumentError, match="cities, arithmetic"):
        load_statements("rumours")


def test_over_a_hundred_real_and_as_many_invented_things_are_asked_about_in_the_same_words():
    questions = load_entity_questions()
    assert len(questions) >= 200
    assert [one.is_real for one in questions] == [True, False] * (len(questions) // 2)
    assert len({one.name.lower() for one in questions}) == len(questions)
    for real, invented in zip(questions[::2], questions[1::2], strict=True):
        assert (real.pair, real.category) == (invented.pair, invented.category)
        assert real.question.replace(real.name, invented.name) == invented.question
    assert set(Counter(one.category for one in questions).values()) == {44}


def test_invented_names_are_as_long_as_real_ones():
    questions = load_entity_questions()
    lengths = {is_real: [len(one.name) for one in questions if one.is_real == is_real] for is_real in (True, False)}
    assert abs(np.mean(lengths[True]) - np.mean(lengths[False])) < 0.5
