from dataclasses import replace

import numpy as np
import pytest

from persona_lens.errors import InvalidArgumentError
from persona_lens.space import measure_playing
from tests.space.made import along, make_answers


class WordEncoder:
    """A text's vector: which of a few words are in it, and a little that is the text's own."""

    name = identity = "words"
    words = ("arr", "meow", "hello")

    def encode(self, texts):
        own = [np.random.default_rng(sum(map(ord, text))).normal(0, 0.1, 3) for text in texts]
        return np.array([[word in text for word in self.words] for text in texts], dtype=float) + np.array(own)


def say(*words):
    """Answers in which each role has a word of its own."""
    answers = make_answers(along(0, 1.0, 2.0, 3.0), along(0, 0.0)[0])
    texts = tuple(tuple((f"{word} {q}", f"{word} {q}!") for q in range(12)) for word in words)
    return replace(answers, texts=texts)


def test_a_role_with_words_of_its_own_is_played_and_named_and_one_that_talks_like_the_assistant_is_not():
    found = measure_playing(say("hello", "arr", "meow", "hello"), WordEncoder())
    assert found.played == ("role0", "role1")
    assert found.share == pytest.approx(2 / 3)
    assert [one.estimate for one in found.named[:2]] == [1.0, 1.0]
    assert found.chance == pytest.approx(1 / 3)


def test_a_model_that_plays_nothing_is_told_so():
    found = measure_playing(say(*["hello"] * 4), WordEncoder())
    assert found.share == 0


def test_too_few_questions_are_refused():
    with pytest.raises(InvalidArgumentError, match="answers"):
        measure_playing(say("hello", "arr", "meow", "hello").ask([0, 1]), WordEncoder())
