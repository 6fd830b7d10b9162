"""A layer sweep against one configuration after the other.

Ours: ``sweep_layers``. The other side, the paper's code: for each layer and coefficient a forward hook, Hugging Face
``generate`` (batch 20) for the questions, then the same judgement, each response under each of the judge's system
prompts with Hugging Face, in batches of 20.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype

LAYERS, COEFFICIENTS, TOKENS, REPEATS = (9, 15, 21), (1.0, 2.0, 3.0), 24, 2


def main() -> None:
    """Time both and write the ratio."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model: Any = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    questions = trait.evaluation_questions
    vector = pl.extract_persona_vector(model, trait, judge="none", max_new_tokens=8)
    judge = pl.calibrate_likelihood_judge(model, trait, max_new_tokens=8)
    systems = [
        *trait.positive_system_prompts[: judge.n_pairs],
        *trait.negative_system_prompts[: judge.n_pairs],
        None,
    ]
    prompts = [pl.encode_prompt(model.tokenizer, [{"role": "user", "content": q}]).tokens for q in questions]

    def steer_one_after_the_other() -> list[torch.Tensor]:
        found = []
        configurations: list[tuple[int, torch.Tensor] | None] = [None]
        configurations += [(layer, c * vector.direction(layer)) for layer in LAYERS for c in COEFFICIENTS]
        # As many random directions as sweep_layers tries below.
        configurations += [(LAYERS[1], c * vector.direction(LAYERS[1]).roll(1)) for c in COEFFICIENTS]
        for configuration in configurations:
            with hugging_face.steered(configuration):
                responses = hugging_face.generate(prompts, TOKENS)
            found.append(score_one_after_the_other(responses))
        return found

    def score_one_after_the_other(responses: list[list[int]]) -> torch.Tensor:
        scores = []
        for system in systems:
            for at in range(0, len(responses), HuggingFaceWay.BATCH_SIZE):
                rows = []
                for question, response in list(zip(questions, responses, strict=True))[
                    at : at + HuggingFaceWay.BATCH_SIZE
                ]:
                    messages: list[Any] = [{"role": "system", "content": system}] if system else []
                    prompt = pl.encode_prompt(model.tokenizer, [*messages, {"role": "user", "content": question}])
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

    ways = {
        "persona_lens": lambda: pl.sweep_layers(
            model, trait, vector, layers=LAYERS, coefficients=COEFFICIENTS, judge=judge, max_new_tokens=TOKENS,
            random_directions=1, null_layers=LAYERS[1],
        ),
        "one configuration after the other": steer_one_after_the_other,
    }  # fmt: skip
    seconds = time_in_turn(ways, REPEATS)
    rows = [
        {
            "what": "layer sweep with its judgements, against one configuration after the other",
            "ratio": summarize_ratio(seconds, "one configuration after the other", "persona_lens"),
            "target": "≥ 3",
        }
    ]
    details = {
        "configurations": 1 + (len(LAYERS) + 1) * len(COEFFICIENTS),
        "questions": len(questions),
        "tokens": TOKENS,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("sweep", rows, pl.describe_model(model), details)


if __name__ == "__main__":
    main()
