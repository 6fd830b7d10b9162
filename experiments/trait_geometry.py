"""How do traits lie to each other, how stable are their vectors, and which tokens do they write?

    python experiments/trait_geometry.py                                   # all bundled traits: minutes on two cores
    python experiments/trait_geometry.py --trait evil --trait impolite

After section G.2 of "Persona Vectors" (arXiv 2507.21509). figures/vector_TRAIT.safetensors is used where it is this
model's; the other vectors are extracted. Beside the figure, trait_geometry_tokens.html lists what each direction v
writes through the unembedding if nothing after it reads it: (f(v) - f(-v)) / 2 with f = unembedding of the final norm,
i.e. v on the final norm's scale, its gain applied, without any bias. Numbers are standard deviations over the
vocabulary; the norm's divisor, one positive number for all tokens, drops out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from results.trait_geometry import TraitGeometry, TraitVector, WrittenTokens

import persona_lens as pl
from persona_lens.judges import calibrate_likelihood_judge
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import LayerArguments, read_traits
from persona_lens.reproduction.entrance import enter
from persona_lens.run import Run
from persona_lens.tensors import normalize

NAME = "trait_geometry"
N_TOKENS = 10


@dataclass(frozen=True)
class Profile:
    """How much is sampled for a vector."""

    n_pairs: int = 3
    n_questions: int = 10
    max_new_tokens: int = 24
    temperature: float = 0.7


PROFILES = {"quick": Profile(), "paper": Profile(5, 20, 1000, 1.0), "tiny": Profile(1, 4, 6)}


def main(arguments: LayerArguments) -> None:
    """Run or redraw the comparison."""
    result = arguments.read(TraitGeometry, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {len(result.traits)} traits")


def run(arguments: LayerArguments) -> TraitGeometry:
    """Find every vector, compare them."""
    profile = arguments.pick(PROFILES)
    names = arguments.trait or pl.list_traits()
    if len(set(names)) < 2:
        raise SystemExit("--trait must be given at least twice, or not at all: cosines are between traits.")
    traits = read_traits(names, profile.n_pairs, profile.n_questions)
    model = arguments.load_model()
    n_layers = model.cfg.n_layers
    layer = n_layers // 2 if arguments.layer is None else arguments.layer
    sampling = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    vectors, rows, left_out = [], [], {}
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    with run.progress("traits", len(traits)) as advance:
        for trait in traits:
            try:
                # Never layer_sweep.py's, which may be read from written answers: those of one figure are of one kind.
                vector = extract(model, trait, sampling, Run(run.store))
            except pl.errors.InvalidArgumentError as error:  # no pair was kept: said in the figure
                left_out[trait.name] = str(error)
                continue
            finally:
                advance(1)
            vectors.append(vector)
            split_half = vector.split_half_cosine.get(vector.position)
            rows.append(
                TraitVector(
                    trait=trait.name,
                    source="extracted by this run",
                    counts=vector.counts,
                    provenance=vector.provenance,
                    split_half_cosine=None if split_half is None else tuple(split_half.tolist()),
                    norms=tuple(vector.norms.tolist()),
                    tokens=tuple(read_tokens(model, vector, at) for at in sorted({layer, n_layers - 1})),
                )
            )
    if len(vectors) < 2:
        raise SystemExit(f"Fewer than two traits gave a vector, so there is nothing to compare. Left out: {left_out}")
    units = normalize(torch.stack([vector.directions for vector in vectors]))
    cosines = torch.einsum("ald,bld->lab", units, units).clamp(-1.0, 1.0)
    return TraitGeometry(
        config=config | {"traits": [trait.to_dict() for trait in traits]},
        layer=layer,
        d_model=model.cfg.d_model,
        traits=tuple(rows),
        left_out=left_out,
        cosines=tuple(tuple(tuple(row) for row in matrix) for matrix in cosines.tolist()),
    )


def extract(model: HookedModel, trait: pl.Trait, sampling: pl.Sampling, run: Run) -> pl.PersonaVector:
    """Calibrate a judge and extract a trait's vector with it."""
    judge = calibrate_likelihood_judge(model, trait, n_pairs=1, sampling=sampling, run=run)
    return pl.extract_persona_vector(model, trait, judge=judge, sampling=sampling, run=run)


@torch.no_grad()
def read_tokens(model: HookedModel, vector: pl.PersonaVector, layer: int) -> WrittenTokens:
    """Return the tokens that a direction promotes and suppresses most, with standard deviations over the vocabulary."""
    direction = vector.direction(layer)
    both = torch.stack([direction, -direction])[:, None].to(model.cfg.device, model.cfg.dtype)
    plus, minus = model.unembed(model.ln_final(both))[:, 0].float().cpu()
    written = ((plus - minus) / 2)[: len(model.tokenizer)]  # some vocabularies are padded with unused rows
    scores = (written - written.mean()) / written.std()

    def name(order: torch.Tensor) -> tuple[tuple[str, float], ...]:
        return tuple((model.tokenizer.decode([int(i)]), float(scores[i])) for i in order)

    ranked = scores.argsort(descending=True, stable=True)
    return WrittenTokens(layer, name(ranked[:N_TOKENS]), name(ranked.flip(0)[:N_TOKENS]))


if __name__ == "__main__":
    enter(main, LayerArguments, __doc__)
