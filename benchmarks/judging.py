"""The likelihood judge against the naive way: two full forward passes a response, one by one.

Both sides score the same responses with one instruction pair; ours also runs the neutral prompt, for coherence.
"""

from __future__ import annotations

import statistics

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.models.loading import resolve_dtype

TOKENS, ROLLOUTS, REPEATS = 32, 4, 5


def main() -> None:
    """Time both and write the ratio."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    requests = [
        pl.RolloutRequest(question, (q, r))
        for q, question in enumerate(trait.evaluation_questions)
        for r in range(ROLLOUTS)
    ]
    sampled = pl.sample_rollouts(model, requests, pl.SamplingSettings(max_new_tokens=TOKENS))
    questions, responses = [r.request.question for r in sampled], [r.response for r in sampled]
    # Speed does not depend on the calibration.
    judge = pl.LikelihoodJudge(model, trait, 1, LikelihoodCalibration(1.0, 0.0, -2.0, -3.0, -1.0, 1, 1, 1, 0))
    systems = (trait.positive_system_prompts[0], trait.negative_system_prompts[0])

    def score_one_by_one() -> list[float]:
        scores = []
        for question, response in zip(questions, responses, strict=True):
            likelihoods = []
            for system in systems:
                messages: list = [
                    {"role": "system", "content": system},
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": response},
                ]
                encoded = pl.encode_conversation(hugging_face.tokenizer, messages)
                tokens = torch.tensor([encoded.tokens])
                with torch.no_grad():
                    logits = hugging_face.model(tokens).logits[0, encoded.response_start - 1 : encoded.response_end - 1]
                targets = tokens[0, encoded.response_start : encoded.response_end, None]
                likelihoods.append(float(logits.float().log_softmax(-1).gather(-1, targets).mean()))
            scores.append(likelihoods[0] - likelihoods[1])
        return scores

    seconds = time_in_turn(
        {"persona_lens": lambda: judge.score(questions, responses), "one by one": score_one_by_one}, REPEATS
    )
    rows = [
        {
            "what": "likelihood judge, against two forward passes a response, one by one",
            "ratio": summarize_ratio(seconds, "one by one", "persona_lens"),
            "target": "≥ 2",
        }
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
