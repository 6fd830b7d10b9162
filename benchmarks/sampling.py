"""Sampling: tokens a second against Hugging Face ``generate``, and what recording the residual stream costs.

Batch 32, 32 different prompts (so no prompt is shared), 48 tokens each, temperature 1. On our side every row is
steered by its own vector; Hugging Face samples unsteered.
"""

from __future__ import annotations

import statistics

import torch
from _compare import HuggingFaceWay, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.engine.requests import SampleRequest
from persona_lens.models.engine.sampling import sample_recorded_stream, sample_stream
from persona_lens.models.loading import resolve_dtype

BATCH, TOKENS, REPEATS = 32, 48, 7


def main() -> None:
    """Time all ways and write the ratios."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    hooked = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    bridge = pl.load_model(backend="bridge", dtype=dtype, device="cpu")
    hugging_face = HuggingFaceWay(dtype)
    trait = pl.load_trait("evil")
    questions = (trait.extraction_questions + trait.evaluation_questions)[:BATCH]
    prompts = [pl.models.encode_prompt(hooked.tokenizer, [{"role": "user", "content": q}]).tokens for q in questions]
    generator = torch.Generator().manual_seed(0)
    requests = [
        SampleRequest(
            prompt,
            (row,),
            pl.Intervention.of(row % hooked.cfg.n_layers, pl.tensors.Add(torch.randn(576, generator=generator), 1.0)),
        )
        for row, prompt in enumerate(prompts)
    ]
    settings = pl.Sampling(max_new_tokens=TOKENS, batch_size=BATCH)
    ways = {
        "hooked": lambda: list(sample_stream(hooked, requests, settings)),
        "hooked, recording": lambda: list(sample_recorded_stream(hooked, requests, settings)),
        "bridge": lambda: list(sample_stream(bridge, requests, settings)),
        "Hugging Face generate": lambda: hugging_face.generate(
            prompts, TOKENS, min_new_tokens=TOKENS, batch_size=BATCH
        ),
    }
    seconds = time_in_turn(ways, REPEATS)
    rows = [
        {
            "what": "sampling, HookedTransformer against Hugging Face generate (batch 32, per-row steering)",
            "ratio": summarize_ratio(seconds, "Hugging Face generate", "hooked"),
            "target": "≥ 1.0",
        },
        {
            "what": "sampling, TransformerBridge against Hugging Face generate (batch 32, per-row steering)",
            "ratio": summarize_ratio(seconds, "Hugging Face generate", "bridge"),
            "target": "≥ 1.0",
        },
        {
            "what": "time of sampling while recording all layers' means, against sampling alone",
            "ratio": summarize_ratio(seconds, "hooked, recording", "hooked"),
            "target": "≤ 1.1",
        },
    ]
    details = {
        "batch": BATCH,
        "tokens": TOKENS,
        "rounds": REPEATS,
        "tokens_per_second": {name: BATCH * TOKENS / statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("sampling", rows, pl.describe_model(hooked), details)


if __name__ == "__main__":
    main()
