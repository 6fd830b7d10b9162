"""How do traits lie to each other, how stable are their vectors, and which tokens do they write?

    python experiments/trait_geometry.py                                   # all bundled traits: minutes on two cores
    python experiments/trait_geometry.py --trait evil --trait impolite
    python experiments/trait_geometry.py --replot

After section G.2 of "Persona Vectors" (arXiv 2507.21509). figures/vector_TRAIT.safetensors is used where it is this
model's; the other vectors are extracted. Beside the figure, trait_geometry_tokens.html lists what each direction v
writes through the unembedding if nothing after it reads it: (f(v) - f(-v)) / 2 with f = unembedding of the final norm,
i.e. v on the final norm's scale, its gain applied, without any bias. Numbers are standard deviations over the
vocabulary; the norm's divisor, one positive number for all tokens, drops out. Killed, the same command goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import tyro
from _figures import write_figure
from _measuring import (
    CommonArguments,
    Sampling,
    extract_vector,
    find_vector,
    prepare_judge,
    read_results,
    read_traits,
)

import persona_lens as pl
from persona_lens.models.hooks.sites import check_layer
from persona_lens.plots import list_written_tokens, plot_trait_geometry
from persona_lens.storage import collect_versions, write_bytes_atomically

NAME = "trait_geometry"
N_TOKENS = 10


@dataclass(frozen=True)
class Profile:
    """How much is sampled for a vector."""

    n_pairs: int = 3
    n_questions: int = 10
    max_new_tokens: int = 24
    temperature: float = 0.7


PROFILES = {"quick": Profile(), "paper": Profile(5, 20, 1000, 1.0)}
TINY = Profile(1, 4, 6)


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Compare the directions of two or more traits, all bundled ones if none is named."""

    layer: int | None = None
    """Zero-based block index for the cosines and the tokens; the middle of the model if left out."""


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    """Run or redraw the comparison."""
    path = arguments.out / f"{NAME}.json"
    content = read_results(path) if arguments.replot else run(arguments)
    write_figure(plot_trait_geometry(content), content, arguments.out, NAME)
    write_bytes_atomically(arguments.out / f"{NAME}_tokens.html", list_written_tokens(content).encode())
    print(f"{path.with_suffix('.html')}: {len(content['traits'])} traits")


def run(arguments: Arguments) -> dict[str, Any]:
    """Find every vector, compare them; return everything as JSON-able values."""
    profile = TINY if arguments.tiny else PROFILES[arguments.profile]
    names = arguments.trait or pl.list_traits()
    if len(set(names)) < 2:
        raise SystemExit("--trait must be given at least twice, or not at all: cosines are between traits.")
    traits = read_traits(names, profile.n_pairs, profile.n_questions)
    model: Any = pl.load_model(arguments.model, dtype=arguments.dtype)
    n_layers = model.cfg.n_layers
    layer = check_layer(n_layers // 2 if arguments.layer is None else arguments.layer, n_layers)
    config = {
        "experiment": NAME,
        "model": asdict(pl.describe_model(model)),
        "profile": asdict(profile),
        "seed": arguments.seed,
        "versions": collect_versions(),
    }
    sampling = Sampling(profile.max_new_tokens, profile.temperature, arguments.seed)
    vectors, rows, left_out = [], [], {}
    with pl.show_progress("traits", len(traits)) as advance:
        for trait in traits:
            vector, source = find_vector(model, trait.name, arguments.out)
            try:
                if vector is None:
                    store = pl.ShardStore(arguments.runs, config | {"trait": trait.to_dict()})
                    judge = prepare_judge(model, trait, 1, sampling, store)
                    vector = extract_vector(model, trait, judge, 1, sampling, store)
            except pl.errors.InvalidArgumentError as error:  # no pair was kept: said in the figure
                left_out[trait.name] = str(error)
                continue
            finally:
                advance(1)
            vectors.append(vector)
            tokens = {at: read_tokens(model, vector.direction(at)) for at in sorted({layer, n_layers - 1})}
            split_half = vector.split_half_cosine.get(vector.position)
            rows.append(
                {
                    "trait": trait.name,
                    "source": source,
                    "counts": asdict(vector.counts),
                    "provenance": vector.provenance,
                    "split_half_cosine": None if split_half is None else _round(split_half),
                    "norms": _round(vector.norms),
                    "tokens": [{"layer": at, **found} for at, found in tokens.items()],
                }
            )
    if len(vectors) < 2:
        raise SystemExit(f"Fewer than two traits gave a vector, so there is nothing to compare. Left out: {left_out}")
    units = pl.tensors.normalize(torch.stack([vector.directions for vector in vectors]))
    cosines = torch.einsum("ald,bld->lab", units, units).clamp(-1.0, 1.0)
    return {
        "config": config | {"traits": [trait.to_dict() for trait in traits]},
        "layer": layer,
        "d_model": model.cfg.d_model,
        "traits": rows,
        "left_out": left_out,
        "cosines": [[_round(row) for row in matrix] for matrix in cosines],
    }


@torch.no_grad()
def read_tokens(model: Any, direction: torch.Tensor) -> dict[str, list[tuple[str, float]]]:
    """Return the tokens that a direction promotes and suppresses most, with standard deviations over the vocabulary."""
    both = torch.stack([direction, -direction])[:, None].to(model.cfg.device, model.cfg.dtype)
    plus, minus = model.unembed(model.ln_final(both))[:, 0].float().cpu()
    written = ((plus - minus) / 2)[: len(model.tokenizer)]  # some vocabularies are padded with unused rows
    scores = (written - written.mean()) / written.std()

    def name(order: torch.Tensor) -> list[tuple[str, float]]:
        return [(model.tokenizer.decode([int(i)]), round(float(scores[i]), 2)) for i in order]

    ranked = scores.argsort(descending=True, stable=True)
    return {"promoted": name(ranked[:N_TOKENS]), "suppressed": name(ranked.flip(0)[:N_TOKENS])}


def _round(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
