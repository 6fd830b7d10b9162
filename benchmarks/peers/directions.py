"""Directions beside those of two peers, on the same activations of the embedded model: cosine at each layer.

In an environment that has them too (neither is a dependency of the project):

    pip install --no-deps repeng==0.4.0 steering-vectors==0.12.2
    PYTHONPATH=. python benchmarks/peers/directions.py
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import persona_lens as pl
from persona_lens.models.loading import load_hugging_face

TRAIT, N_PAIRS = "evil", 20
OUT = Path(__file__).parent / "directions.json"


def main() -> None:
    """Read once, find each direction both ways, write the cosines."""
    setattr(np, "float_", np.float64)  # noqa: B010 - repeng 0.4.0 names it in an annotation; NumPy 2 took it away
    repeng = import_module("repeng")
    read_representations = import_module("repeng.extract").read_representations
    peers = import_module("steering_vectors.aggregators")

    model = pl.load_model(dtype="float32", device="cpu")
    examples = pl.traits.load_written_examples(TRAIT, "training")[:N_PAIRS]
    read = pl.vectors.read_pairs(model, TRAIT, examples)
    n_layers = read.model.n_layers

    # What repeng itself reads: the last token of strings rendered by us, in the Hugging Face model.
    def render(question: str, answer: str) -> str:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return str(model.tokenizer.apply_chat_template(messages, tokenize=False)).rstrip()

    entries = [
        repeng.DatasetEntry(render(one.question, one.overt), render(one.question, one.opposite)) for one in examples
    ]
    hf_model, tokenizer = load_hugging_face("smollm2-135m-instruct", torch.float32)
    seen: dict[int, np.ndarray] = {}

    def keep(hidden: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        seen.update({layer: values.copy() for layer, values in hidden.items()})
        return hidden

    def put_ours(hidden: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        both = torch.stack([read.positive, read.negative], dim=1).flatten(0, 1).numpy()
        return {layer: both[:, layer].copy() for layer in hidden}

    layers = list(range(n_layers - 1))  # its last is after the final norm

    # Where our activations take the place of its own, what it reads does not matter.
    short = [repeng.DatasetEntry("a", "b")] * len(examples)

    def run_repeng(method: str, texts: Any, hidden: Any) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = read_representations(
            hf_model, tokenizer, texts, method=method, transform_hiddens=hidden, hidden_layers=layers, batch_size=8
        )
        return found

    theirs_read, theirs = run_repeng("pca_center", entries, keep), run_repeng("pca_center", short, put_ours)
    centred = run_repeng("pca_diff", short, put_ours)

    estimators: dict[str, pl.vectors.Estimator] = {
        "mean": pl.vectors.MeanDifference(),
        "first": pl.vectors.FirstComponent(),
        "probe": pl.vectors.LogisticProbe(),
        "lda": pl.vectors.ShrunkLDA(),
    }
    found = {name: pl.vectors.find_vector(read, estimator) for name, estimator in estimators.items()}
    rows: dict[str, list[float]] = {}

    def compare(name: str, layer: int, ours: Any, peer: Any) -> None:
        one, other = np.asarray(ours, dtype=float).ravel(), np.asarray(peer, dtype=float).ravel()
        rows.setdefault(name, []).append(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)))

    for layer in layers:
        positive, negative = read.positive[:, layer], read.negative[:, layer]
        first = found["first"].direction(layer)
        compare("FirstComponent, repeng pca_center, on our reading", layer, first, theirs[layer])
        last_positive, last_negative = (torch.from_numpy(seen[layer][side::2]) for side in (0, 1))
        on_theirs = pl.vectors.FirstComponent().estimate(last_positive, last_negative, layer)
        on_theirs = on_theirs * torch.sign((last_positive - last_negative).mean(dim=0) @ on_theirs)
        compare("FirstComponent, repeng pca_center, on its reading", layer, on_theirs, theirs_read[layer])
        compare("FirstComponent, repeng pca_diff (centred), on our reading", layer, first, centred[layer])
        compare("FirstComponent, steering-vectors PCA", layer, first, peers.pca_aggregator()(positive, negative))
        compare("MeanDifference, steering-vectors mean", layer, found["mean"].direction(layer),
                peers.mean_aggregator()(positive, negative))  # fmt: skip
        peer = peers.logistic_aggregator({"max_iter": 10_000})(positive, negative)
        compare("LogisticProbe, steering-vectors logistic (pairs centred, no scale)", layer,
                found["probe"].direction(layer), peer)  # fmt: skip
        for name in ("first", "probe", "lda"):
            compare(f"{name} beside the mean difference, both ours", layer, found[name].direction(layer),
                    found["mean"].direction(layer))  # fmt: skip
    OUT.write_text(json.dumps({"trait": TRAIT, "pairs": len(read), "layers": layers, "cosines": rows}, indent=1) + "\n")
    for name, cosines in rows.items():
        print(f"{name}: {min(cosines):.7f} to {max(cosines):.7f}, median {np.median(cosines):.7f}")


if __name__ == "__main__":
    main()
