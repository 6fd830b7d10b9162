"""A layer sweep against one configuration after the other.

Ours: ``sweep_layers``. The other side, the paper's code: for each layer and coefficient a forward hook, Hugging Face
``generate`` (batch 20) for the questions, then the judge. Twice: with a judge that costs nothing here (in the paper it
is a remote model, so sampling is all that its own code computes), and with the likelihood judge computed on both
sides, the other side with Hugging Face in batches of 20, each response under each of the judge's system prompts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype

LAYERS, COEFFICIENTS, TOKENS, REPEATS = (9, 15, 21), (1.0, 2.0, 3.0), 24, 3


class RemoteJudge:
    """Stands for a judge elsewhere: costs no time here."""

    name = "elsewhere"

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[pl.judges.Judgement]:
        """Say nothing of interest."""
        return [pl.judges.Judgement(50.0, 50.0) for _ in responses]


def main() -> None:
    """Time all four and write the ratios."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    questions = trait.evaluation_questions
    vector = pl.extract_persona_vector(model, trait, judge="none", max_new_tokens=8)
    judge = pl.judges.calibrate_likelihood_judge(model, trait, sampling=pl.Sampling(max_new_tokens=8))
    systems = [*trait.positive_system_prompts[: judge.n_pairs], *trait.negative_system_prompts[: judge.n_pairs], None]
    prompts = [pl.models.encode_prompt(model.tokenizer, [{"role": "user", "content": q}]).tokens for q in questions]
    configurations: list[tuple[int, torch.Tensor] | None] = [None]
    configurations += [(layer, c * vector.direction(layer)) for layer in LAYERS for c in COEFFICIENTS]
    # As many random directions as sweep_layers tries below.
    configurations += [(LAYERS[1], c * vector.direction(LAYERS[1]).roll(1)) for c in COEFFICIENTS]

    def sweep(its_judge: pl.judges.Judge) -> None:
        pl.sweep_layers(
            model, trait, vector, layers=LAYERS, coefficients=COEFFICIENTS, judge=its_judge,
            null=pl.evaluation.RandomNull(directions=2, layers=LAYERS[1]), sampling=pl.Sampling(max_new_tokens=TOKENS),
        )  # fmt: skip

    def sample_one_after_the_other() -> list[list[list[int]]]:
        sampled = []
        for configuration in configurations:
            with hugging_face.steered(configuration):
                sampled.append(hugging_face.generate(prompts, TOKENS))
        return sampled

    def score_one_after_the_other(responses: list[list[int]]) -> torch.Tensor:
        scores = []
        asked = list(zip(questions, responses, strict=True))
        for system in systems:
            for at in range(0, len(asked), HuggingFaceWay.BATCH_SIZE):
                rows = []
                for question, response in asked[at : at + HuggingFaceWay.BATCH_SIZE]:
                    messages: list[Any] = [{"role": "system", "content": system}] if system else []
                    prompt = pl.models.encode_prompt(
                        model.tokenizer, [*messages, {"role": "user", "content": question}]
                    )
                    rows.append([*prompt.tokens, *response])
                batch = hugging_face.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
                lengths = torch.tensor([len(response) for response in responses[at : at + len(rows)]])
                longest = int(lengths.max())
                with torch.no_grad():
                    # Left-padded, so a response is the last tokens of its row.
                    logits = hugging_face.model(**batch, logits_to_keep=longest + 1).logits[:, :-1].float()
                targets = batch["input_ids"][:, -longest:, None]
                likelihoods = logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)
                inside = torch.arange(longest) >= longest - lengths[:, None]
                scores.append((likelihoods * inside).sum(-1) / lengths)
        return torch.cat(scores)

    seconds = time_in_turn(
        {
            "sweep, remote judge": lambda: sweep(RemoteJudge()),
            "one after the other, remote judge": sample_one_after_the_other,
            "sweep, likelihood judge": lambda: sweep(judge),
            "one after the other, likelihood judge": lambda: [
                score_one_after_the_other(responses) for responses in sample_one_after_the_other()
            ],
        },
        REPEATS,
    )
    rows = [
        {
            "what": f"layer sweep with a {judged} judge, against one configuration after the other",
            "ratio": summarize_ratio(seconds, f"one after the other, {judged} judge", f"sweep, {judged} judge"),
            "target": "≥ 3",
        }
        for judged in ("remote", "likelihood")
    ]
    details = {
        "configurations": len(configurations),
        "questions": len(questions),
        "tokens": TOKENS,
        "judge's instruction pairs": judge.n_pairs,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("sweep", rows, pl.describe_model(model), details)


if __name__ == "__main__":
    main()
