"""What reading an answer token by token costs: ``stream_tokens`` against ``pl.ask``, which draws the same answer."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from _compare import N_THREADS, summarize_ratio, time_in_turn, write_benchmark

import persona_lens as pl
from persona_lens.models.loading import resolve_dtype
from persona_lens.monitoring import stream_tokens

TOKENS, REPEATS = 64, 7
CHAT: list[pl.models.Message] = [{"role": "user", "content": "What should I do on a rainy day in the city?"}]


def main() -> None:
    """Time both, in turn, for one and for seven vectors read at every layer; write the ratios."""
    dtype = resolve_dtype("auto", torch.device("cpu"))
    model = pl.load_model(backend="hooked", dtype=dtype, device="cpu")
    info = pl.describe_model(model)
    torch.manual_seed(0)
    # Speed does not depend on the directions.
    directions = torch.randn(7, info.n_layers, info.d_model)
    vectors = {str(i): pl.PersonaVector(str(i), info, {"response_mean": one}) for i, one in enumerate(directions)}
    # A stop token that is never drawn: all answers are equally long.
    sampling = pl.Sampling(max_new_tokens=TOKENS, temperature=0.7, stop_tokens=frozenset({model.cfg.d_vocab}))

    def stream(n_vectors: int) -> Callable[[], None]:
        chosen = {name: vectors[name] for name in list(vectors)[:n_vectors]}

        def read() -> None:
            assert len(list(stream_tokens(model, CHAT, chosen, sampling=sampling))) == TOKENS

        return read

    numbers = (1, 7)
    ways: dict[str, Callable[[], object]] = {"ask": lambda: pl.ask(model, CHAT, sampling=sampling)}
    ways |= {f"stream {n}": stream(n) for n in numbers}
    seconds = time_in_turn(ways, REPEATS)
    rows = [
        {
            "what": f"time of an answer whose tokens are read at every layer along {n} vector{'s' if n > 1 else ''}, "
            "against the same answer unread",
            "ratio": summarize_ratio(seconds, f"stream {n}", "ask"),
            "target": "≤ 1.1",
        }
        for n in numbers
    ]
    details = {
        "tokens": TOKENS,
        "rounds": REPEATS,
        "threads": N_THREADS,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    write_benchmark("streaming", rows, info, details)


if __name__ == "__main__":
    main()
