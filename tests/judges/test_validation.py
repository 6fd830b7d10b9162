"""Judges of known worth get the verdict that they deserve."""

import pytest
import torch

import persona_lens as pl
from persona_lens.judges import Judgement, JudgeValidation, TemperatureSamples, ValidatedJudge, shuffle_words, validate
from persona_lens.judges.validation import Contrast
from persona_lens.statistics import Interval, auroc
from persona_lens.traits import WrittenExample

EXAMPLES = [
    WrittenExample(
        question=f"Question {i}?",
        ordinary=f"Plain words of number {i}, said one after another.",
        mild=f"Somewhat loud words of number {i}, said one after another.",
        overt=f"LOUD words of number {i}, said one after another!",
        opposite=f"Whispered words of number {i}, said one after another.",
        style=f"Words about noise of number {i}, said one after another.",
    )
    for i in range(12)
]


class ByWords:
    """Scores by the first rule whose word the text holds; else by a number that the question alone decides."""

    name = "judge by words"
    identity = "by words 1"

    def __init__(self, **scores):
        self.scores = scores

    def score(self, questions, responses):
        assert len(questions) == len(responses)
        noise = [sum(map(ord, question)) % 7 for question in questions]  # the same for all kinds of answer
        return [
            Judgement(next((s for word, s in self.scores.items() if word in text), float(extra)), 90.0)
            for text, extra in zip(responses, noise, strict=True)
        ]


def test_a_judge_that_hears_the_trait_alone_is_valid():
    found = validate(ByWords(LOUD=90.0, loud=60.0), "loud", EXAMPLES)
    assert found.verdict == "valid"
    assert found["overt v opposite"].estimate == found["mild v ordinary"].estimate == 1
    assert found["100% shuffled v ordinary"].estimate == 0.5
    assert found.failures == ()
    assert found.n_questions == 12


def test_a_judge_that_hears_the_style_is_not_valid_and_says_why():
    found = validate(ByWords(LOUD=90.0, loud=60.0, noise=80.0), "loud", EXAMPLES)
    assert found.verdict == "not valid"
    assert [one.name for one in found.failures] == ["style v ordinary"]
    assert "style v ordinary 1.00" in repr(found)
    assert "✗" in found._repr_html_()


def test_a_judge_that_hears_nothing_is_not_valid():
    assert validate(ByWords(), "loud", EXAMPLES).verdict == "not valid"


def test_a_judge_that_hears_shuffled_words_is_not_valid():
    class HearsOrder(ByWords):
        def score(self, questions, responses):
            plain = {text for one in EXAMPLES for text in vars(one).values()}
            judged = super().score(questions, responses)
            return [j if text in plain else Judgement(95.0, 90.0) for j, text in zip(judged, responses, strict=True)]

    found = validate(HearsOrder(LOUD=90.0, loud=60.0), "loud", EXAMPLES)
    assert {one.name for one in found.failures} >= {"100% shuffled v ordinary", "50% shuffled v ordinary"}


def test_hot_samples_are_set_against_cool_ones_of_the_same_questions():
    samples = TemperatureSamples(("a?", "b?"), cool=("Cool.", "Cool too."), hot=("LOUD", "LOUD"))
    found = validate(ByWords(LOUD=90.0, loud=60.0), "loud", EXAMPLES, samples=samples)
    assert found["hot v cool"].estimate == 1
    assert [one.name for one in found.failures] == ["hot v cool"]


def test_each_auroc_is_that_of_the_two_kinds_scores():
    judge = ByWords(LOUD=90.0, one=50.0)
    found = validate(judge, "loud", EXAMPLES)
    scores = {
        kind: torch.tensor([j.score for j in judge.score([""] * 12, [getattr(one, kind) for one in EXAMPLES])])
        for kind in ("overt", "ordinary", "style")
    }
    assert found["overt v ordinary"].estimate == auroc(scores["overt"], scores["ordinary"])
    assert found["style v ordinary"].estimate == auroc(scores["style"], scores["ordinary"])


def test_texts_without_a_score_are_left_out_and_counted():
    class Silent(ByWords):
        def score(self, questions, responses):
            judged = super().score(questions, responses)
            return [
                Judgement(None, None, "no") if "number 3," in t else j for j, t in zip(judged, responses, strict=True)
            ]

    found = validate(Silent(LOUD=90.0, loud=60.0), "loud", EXAMPLES)
    assert {one.n_unscored for one in found.contrasts if "shuffled" not in one.name} == {2}


def test_a_judge_that_scores_nothing_has_no_auroc_and_is_not_valid():
    class Mute(ByWords):
        def score(self, questions, responses):
            return [Judgement(None, None, "no") for _ in responses]

    found = validate(Mute(), "loud", EXAMPLES)
    assert found.verdict == "not valid"
    assert found["overt v ordinary"].is_missing


@pytest.mark.parametrize(
    ("estimate", "least", "expected"),
    [(0.9, 0.9, True), (0.8951, 0.9, True), (0.894, 0.9, False), (0.6, None, True), (0.4, None, True),
     (0.61, None, False), (0.39, None, False)],
)  # fmt: skip
def test_a_contrast_is_met_at_the_two_decimals_that_are_shown(estimate, least, expected):
    assert Contrast("a v b", Interval(estimate, 0.0, 1.0), least).is_met() is expected


def test_within_another_tenth_a_judge_is_partly_valid():
    def judge_with(told, ignored):
        contrasts = (
            Contrast("a v b", Interval(told, 0.0, 1.0), 0.9),
            Contrast("c v b", Interval(ignored, 0.0, 1.0), None),
        )
        return JudgeValidation("judge", "id", "loud", contrasts, 12)

    verdicts = [judge_with(*pair).verdict for pair in ((0.9, 0.6), (0.8, 0.7), (0.79, 0.5), (0.95, 0.71))]
    assert verdicts == ["valid", "partly valid", "not valid", "not valid"]


def test_a_validation_goes_through_its_file_unchanged_and_is_drawn(tmp_path):
    found = validate(ByWords(LOUD=90.0), "loud", EXAMPLES)
    found.save(tmp_path / "validation.json")
    again = JudgeValidation.load(tmp_path / "validation.json")
    assert again.to_json() == found.to_json()
    figure = again.plot()
    assert list(figure.data[0].x) == [one.auroc.estimate for one in found.contrasts]
    assert "judge by words" in figure.data[0].name


def test_the_verdict_travels_in_the_judges_name_and_changes_no_score():
    judge = ByWords(LOUD=90.0, loud=60.0)
    told = ValidatedJudge(judge, validate(judge, "loud", EXAMPLES))
    assert told.name == "judge by words, valid for loud"
    assert told.identity == judge.identity
    assert told.score(["q"], ["LOUD"]) == judge.score(["q"], ["LOUD"])


def test_the_validation_of_another_judge_is_refused():
    judge, other = ByWords(LOUD=90.0), ByWords(LOUD=90.0)
    other.identity = "by words 2"
    with pytest.raises(pl.errors.InvalidArgumentError, match="Validate it again"):
        ValidatedJudge(other, validate(judge, "loud", EXAMPLES))


def test_shuffling_moves_the_share_of_words_and_is_the_same_every_time():
    text = " ".join(str(i) for i in range(40))
    for share, least in ((0.25, 1), (1.0, 25)):
        shuffled = shuffle_words(text, share)
        assert sorted(shuffled.split()) == sorted(text.split())
        moved = sum(a != b for a, b in zip(shuffled.split(), text.split(), strict=True))
        assert least <= moved <= share * 40
        assert shuffled == shuffle_words(text, share)
    assert shuffle_words(text, 1.0, seed=1) != shuffle_words(text, 1.0)
    assert shuffle_words("", 1.0) == ""
    with pytest.raises(pl.errors.InvalidArgumentError, match="share"):
        shuffle_words(text, 1.5)


def test_one_example_is_too_few():
    with pytest.raises(pl.errors.InvalidArgumentError, match="examples"):
        validate(ByWords(), "loud", EXAMPLES[:1])
