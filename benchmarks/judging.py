"""The likelihood judge against the naive way: full forward passes, one by one.

Both sides score the same responses with one instruction pair: two passes a response for the trait alone, three with
coherence. And, unlike for like, ours with coherence against theirs without.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.models.loading import resolve_dtype

TOKENS, ROLLOUTS, REPEATS = 32, 4, 3


def main() -> None:
    """Time both and write the ratio."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    requests = [
        pl.models.RolloutRequest(question, (q, r))
        for q, question in enumerate(trait.evaluation_questions)
        for r in range(ROLLOUTS)
    ]
    sampled = pl.models.sample_rollouts(model, requests, pl.Sampling(max_new_tokens=TOKENS))
    questions, responses = [r.request.question for r in sampled], [r.response for r in sampled]
    # Speed does not depend on the calibration.
    judge = pl.judges.LikelihoodJudge(model, trait, 1, LikelihoodCalibration(1.0, 0.0, -2.0, -3.0, -1.0, 1, 1, 1, 0))
    systems = (trait.positive_system_prompts[0], trait.negative_system_prompts[0])

    def score_one_by_one(systems: Sequence[str | None]) -> list[list[float]]:
        scores = []
        for question, response in zip(questions, responses, strict=True):
            likelihoods = []
            for system in systems:
                messages: list[Any] = [{"role": "system", "content": system}] if system else []
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
                encoded = pl.models.encode_conversation(hugging_face.tokenizer, messages)
                tokens = torch.tensor([encoded.tokens])
                with torch.no_grad():
                    logits = hugging_face.model(tokens).logits[0, encoded.response_start - 1 : encoded.response_end - 1]
                targets = tokens[0, encoded.response_start : encoded.response_end, None]
                likelihoods.append(float(logits.float().log_softmax(-1).gather(-1, targets).mean()))
            scores.append(likelihoods)
        return scores

    seconds = time_in_turn(
        {
            "trait": lambda: judge.score_trait(questions, responses),
            "trait, two passes one by one": lambda: score_one_by_one(systems),
            "trait and coherence": lambda: judge.score(questions, responses),
            "trait and coherence, three passes one by one": lambda: score_one_by_one([*systems, None]),
        },
        REPEATS,
    )
    rows = [
        {
            "what": "likelihood judge, trait alone, against two forward passes a response, one by one",
            "ratio": summarize_ratio(seconds, "trait, two passes one by one", "trait"),
            "target": "≥ 2",
        },
        {
            "what": "likelihood judge with coherence, against three forward passes a response, one by one",
            "ratio": summarize_ratio(seconds, "trait and coherence, three passes one by one", "trait and coherence"),
            "target": "≥ 2",
        },
        {
            "what": "likelihood judge with coherence, against two forward passes a response (less than it does)",
            "ratio": summarize_ratio(seconds, "trait, two passes one by one", "trait and coherence"),
            "target": "none",
        },
    ]
    details = {
        "responses": len(responses),
        "tokens": TOKENS,
        "rounds": REPEATS,
        "responses_per_second": {name: len(responses) / statistics.median(s) for name, s in seconds.items()},
    }
    write_benchmark("judging", rows, pl.describe_model(model), details)


if __name__ == "__main__":
    main()
