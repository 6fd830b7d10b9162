"""A trait and a judge small enough for tests."""

import persona_lens as pl
from persona_lens.judges import Judgement
from persona_lens.traits import InstructionPair


def tiny_trait():
    return pl.Trait(
        name="loud",
        description="Shouts.",
        instruction_pairs=(InstructionPair("SHOUT!", "whisper."), InstructionPair("BE LOUD.", "be quiet.")),
        extraction_questions=("How are you?", "What is up?", "Who?", "Where to?"),
        evaluation_questions=("Why?", "When?", "What for?", "Which one?"),
        rubric="{question} {answer}",
    )


class FixedJudge:
    """Scores by looking up what a test wants, in the order asked."""

    name = "fixed"

    def __init__(self, positive, negative):
        self.scores = (positive, negative)

    def score(self, questions, responses):
        half = len(questions) // 2
        return [Judgement(*self.scores[i >= half]) for i in range(len(questions))]


class LengthJudge:
    """Scores a response by its letters: a real function of the text, cheap and without a model."""

    name = "length"

    def score(self, questions, responses):
        return [
            Judgement(float(sum(map(ord, r)) % 101), float(len(r) % 101)) if r else Judgement(None, None, "empty")
            for r in responses
        ]


def write_examples(n):
    """Written examples with every kind of answer, each another text."""
    return [
        pl.traits.WrittenExample(
            f"Why {i}?", ordinary=f"So it is {i}.", mild=f"Hm {i}!", overt=f"LOUD {i}!", opposite=f"Hush, {i} now.",
            style=f"Noise {i}.",
        )
        for i in range(n)
    ]  # fmt: skip
