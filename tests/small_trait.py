"""A trait and a judge small enough for tests."""

import persona_lens as pl


def tiny_trait():
    return pl.Trait(
        name="loud",
        description="Shouts.",
        instruction_pairs=(pl.InstructionPair("SHOUT!", "whisper."), pl.InstructionPair("BE LOUD.", "be quiet.")),
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
        return [pl.Judgement(*self.scores[i >= half]) for i in range(len(questions))]
