"""One judge's scores beside another's coherence: judges that read meaning alone say nothing of coherence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from persona_lens.checking import checked
from persona_lens.judges.judgement import IdentifiedJudge, Judgement


@checked
@dataclass(frozen=True, eq=False)
class CoherentJudge:
    """Scores by one judge, coherence by another.

    Args:
        judge: Says how strongly the trait shows.
        coherence: Says how coherent a response is, such as a LikelihoodJudge; its scores are left out.

    Example:
        >>> import persona_lens as pl
        >>> both = pl.judges.CoherentJudge(embedding_judge, likelihood_judge)  # doctest: +SKIP
    """

    judge: IdentifiedJudge
    coherence: IdentifiedJudge

    @property
    def name(self) -> str:
        """That of the judge whose scores they are."""
        return self.judge.name

    @property
    def identity(self) -> str:
        """Changes whenever a score or a coherence could."""
        return json.dumps(["coherent", self.judge.identity, self.coherence.identity])

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response to its question; where one judge gives a reason for none, that is kept."""
        judged = self.judge.score(questions, responses)
        seconds = self.coherence.score(questions, responses)
        return [
            Judgement(one.score, two.coherence, one.reason or two.reason, one.retryable or two.retryable)
            for one, two in zip(judged, seconds, strict=True)
        ]
