"""Extraction of one vector, from prompts to directions, without a judge.

Ours: ``extract_persona_vector``. The other side, the paper's code: sample with Hugging Face ``generate`` (batch 20),
then one forward pass a response with ``output_hidden_states=True``, means, difference.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype

TOKENS, REPEATS = 32, 3


def main() -> None:
    """Time both and write the ratio."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    trait = replace(trait, instruction_pairs=trait.instruction_pairs[:2])

    def extract_one_by_one() -> torch.Tensor:
        means = []
        for systems in (trait.positive_system_prompts, trait.negative_system_prompts):
            prompts = [
                pl.models.encode_prompt(
                    model.tokenizer, [{"role": "system", "content": system}, {"role": "user", "content": question}]
                ).tokens
                for system in systems
                for question in trait.extraction_questions
            ]
            responses = hugging_face.generate(prompts, TOKENS)
            sums = torch.zeros(3, model.cfg.n_layers, model.cfg.d_model)
            for prompt, response in zip(prompts, responses, strict=True):
                with torch.no_grad():
                    output = hugging_face.model(torch.tensor([[*prompt, *response]]), output_hidden_states=True)
                hidden = torch.stack(output.hidden_states[1:])[:, 0].float()
                n = len(prompt)
                sums += torch.stack([hidden[:, n:].mean(1), hidden[:, :n].mean(1), hidden[:, n - 1]])
            means.append(sums / len(prompts))
        return means[0] - means[1]

    ways = {
        "persona_lens": lambda: pl.extract_persona_vector(model, trait, judge="none", max_new_tokens=TOKENS),
        "sample, then forward one by one": extract_one_by_one,
    }
    seconds = time_in_turn(ways, REPEATS)
    rows = [
        {
            "what": "extraction of one vector, against sample-then-forward one by one",
            "ratio": summarize_ratio(seconds, "sample, then forward one by one", "persona_lens"),
            "target": "≥ 2.5",
        }
    ]
    details = {
        "responses": 2 * 2 * 20,
        "tokens": TOKENS,
        "rounds": REPEATS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("extraction", rows, pl.describe_model(model), details)


if __name__ == "__main__":
    main()
