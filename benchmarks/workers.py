"""Scores of conditions by two Ray workers of one thread each, against one process of one thread.

The workers are started before the clock runs, and have loaded the model; what starting them costs is timed apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from _compare import summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.distributed import RayWorkers
from persona_lens.judges import Judgement

# Two pieces of 512 responses.
CONDITIONS, QUESTIONS, ROLLOUTS, REPEATS = 8, 16, 8, 2
SAMPLING = pl.Sampling(max_new_tokens=8, rollouts=ROLLOUTS)
LAYER = 15


class LengthJudge:
    """Scores by length: what is timed is the model."""

    name = "length"

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response."""
        return [Judgement(float(len(response) % 101), 100.0) for response in responses]


def main() -> None:
    """Time both ways in turn, and starting the workers."""
    torch.set_num_threads(1)
    model = pl.load_model(device="cpu")
    info = pl.describe_model(model)
    direction = torch.randn(info.n_layers, info.d_model, generator=torch.Generator().manual_seed(0))
    vector = pl.PersonaVector("chance", info, {"response_mean": direction})
    questions = pl.load_trait("evil").evaluation_questions[:QUESTIONS]
    ways = [pl.Condition(pl.steer(vector, layer=LAYER, coefficient=float(c)), name=f"{c}") for c in range(CONDITIONS)]

    def score(run: pl.Run) -> pl.evaluation.ConditionScores:
        return pl.score_conditions(model, LengthJudge(), ways, questions, sampling=SAMPLING, run=run)

    begun = time.perf_counter()
    with RayWorkers(2).started() as two:
        list(two.compute_each([_nothing]))
        starting = time.perf_counter() - begun
        seconds = time_in_turn(
            {"one process": lambda: score(pl.Run()), "two workers": lambda: score(pl.Run(workers=two))}, REPEATS
        )
        same = score(pl.Run()).to_json() == score(pl.Run(workers=two)).to_json()
    rows = [
        {
            "what": "speed-up of scoring conditions by two workers of one thread each, against one process of one",
            "ratio": summarize_ratio(seconds, "one process", "two workers"),
            "target": "≥ 1.7",
        }
    ]
    details = {
        "responses": CONDITIONS * QUESTIONS * ROLLOUTS,
        "response tokens": SAMPLING.max_new_tokens,
        "pieces": 2,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds to start Ray and the first worker": starting,
        "the same scores": same,
    }
    write_benchmark("workers", rows, info, details)


def _nothing() -> None:
    """Show that a worker is there."""


if __name__ == "__main__":
    main()
