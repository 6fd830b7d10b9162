"""The embedding judge, on a small encoder whose vectors are counts of letters, and once on the bundled model."""

import hashlib

import numpy as np
import pytest

import persona_lens as pl
from persona_lens.judges import EmbeddingJudge, TemperatureSamples, fit_embedding_judge, validate
from persona_lens.traits import WrittenExample, load_written_examples

CALM = ["the", "door", "was", "open", "and", "the", "lamp", "stood", "near", "a", "wall"]
LOUD = ["SHOUT", "ROAR", "BANG", "YELL"]


class WordEncoder:
    """A vector of length one, from which words a text has."""

    name = identity = "words"

    def __init__(self):
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        vectors = np.zeros((len(texts), 64))
        for row, text in enumerate(texts):
            for word in text.strip(".!?").split():
                vectors[row, hashlib.sha256(word.encode()).digest()[0] % 64] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def example(i):
    def say(*words):
        rng = np.random.default_rng([i, len(words)])
        return " ".join([*rng.choice(CALM, 6), *words]) + "."

    loud = [LOUD[i % 4], LOUD[(i + 1) % 4], LOUD[(i + 2) % 4]]
    return WrittenExample(
        f"{i}?", ordinary=say(), mild=say(loud[0]), overt=say(*loud), opposite=say("hush"), style=say("noise", "about")
    )


EXAMPLES = [example(i) for i in range(24)]


@pytest.fixture(scope="module")
def judge():
    return fit_embedding_judge("loud", EXAMPLES[:12], encoder=WordEncoder())


def test_it_tells_a_trait_that_its_encoder_sees_in_texts_that_it_was_not_fitted_on(judge):
    found = validate(judge, "loud", EXAMPLES[12:])
    assert all(one.is_met() for one in found.contrasts if one.least is not None)
    assert found["100% shuffled v ordinary"].estimate == pytest.approx(0.5, abs=0.1)


def test_a_score_is_the_logistic_of_the_texts_place_along_the_fitted_line(judge):
    text = "The door was open. SHOUT ROAR! Was it?"
    logit = judge.encoder.encode([text])[0] @ judge.weights + judge.intercept
    (judged,) = judge.score(["?"], [text])
    assert judged.score == pytest.approx(100 / (1 + np.exp(-logit)))
    assert judged.coherence is None


def test_an_empty_response_gets_a_reason_and_the_others_keep_their_places(judge):
    judged = judge.score(["a", "b", "c"], ["SHOUT ROAR BANG.", "  ", "the door."])
    assert [one.score is None for one in judged] == [False, True, False]
    assert judged[1].reason == "empty response"
    assert judged[0].score > judged[2].score
    assert judge.score([], []) == []


def test_the_same_examples_give_the_same_judge_and_others_another(judge):
    again = fit_embedding_judge("loud", EXAMPLES[:12], encoder=WordEncoder())
    other = fit_embedding_judge("loud", EXAMPLES[1:13], encoder=WordEncoder())
    assert again.identity == judge.identity != other.identity
    assert "words" in judge.name


def test_lists_of_unequal_length_and_too_few_examples_are_refused(judge):
    with pytest.raises(pl.errors.InvalidArgumentError, match="responses"):
        judge.score(["a"], [])
    with pytest.raises(pl.errors.InvalidArgumentError, match="at least 10"):
        fit_embedding_judge("loud", EXAMPLES[:9], encoder=WordEncoder())


@pytest.mark.slow
def test_on_the_bundled_model_it_tells_formal_from_casual_answers_that_it_was_not_fitted_on():
    judge = fit_embedding_judge("formality", load_written_examples("formality", "training")[:15])
    assert isinstance(judge, EmbeddingJudge)
    held_out = load_written_examples("formality", "judging")[:8]
    questions = [one.question for one in held_out]
    overt, opposite = (
        np.mean([one.score for one in judge.score(questions, [getattr(one, kind) for one in held_out])])
        for kind in ("overt", "opposite")
    )
    assert overt > opposite + 40


class ShoutingEncoder(WordEncoder):
    """Sees how hot a text was sampled, marked by "!", in the direction that the trait's words lie in too."""

    def encode(self, texts):
        vectors = np.hstack([super().encode(texts), np.zeros((len(texts), 1))])
        loud = super().encode([" ".join(LOUD)])[0]
        for row, text in enumerate(texts):
            hot = text.count("!") / 4
            vectors[row, :64] += hot * loud
            vectors[row, 64] = hot
        return vectors


def sample(examples, hot_mark):
    cool = tuple(one.ordinary for one in examples)
    return TemperatureSamples(tuple(one.question for one in examples), cool, tuple(t + hot_mark for t in cool))


def test_hotter_sampling_says_nothing_to_a_judge_that_was_fitted_with_samples():
    fitted_on, measured_on = EXAMPLES[:12], EXAMPLES[12:]
    deaf = fit_embedding_judge("loud", fitted_on, encoder=ShoutingEncoder(), samples=sample(fitted_on, "!!!!"))
    hearing = fit_embedding_judge("loud", fitted_on, encoder=ShoutingEncoder())
    heard = [validate(one, "loud", measured_on, sample(measured_on, "!!!!"))["hot v cool"] for one in (deaf, hearing)]
    assert heard[0].estimate == pytest.approx(0.5, abs=0.05)
    assert heard[1].estimate > 0.9


def test_a_sample_that_says_nothing_can_be_fitted_with():
    samples = TemperatureSamples(tuple(one.question for one in EXAMPLES[:12]), ("",) * 12, ("loud!",) * 12)
    assert fit_embedding_judge("loud", EXAMPLES[:12], encoder=WordEncoder(), samples=samples).trait == "loud"


def test_samples_of_other_questions_are_refused():
    with pytest.raises(pl.errors.InvalidArgumentError, match="samples"):
        fit_embedding_judge("loud", EXAMPLES[:12], encoder=WordEncoder(), samples=sample(EXAMPLES[1:13], "!"))
