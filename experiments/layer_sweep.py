"""Which layers steer a trait, at what cost in coherence, how far above everything simpler?

    python experiments/layer_sweep.py --trait evil                     # ten minutes on two cores
    python experiments/layer_sweep.py --trait evil --profile brief     # two: a first look
    python experiments/layer_sweep.py --trait evil --source sampled    # the paper's vector
    python experiments/layer_sweep.py --trait evil --profile paper     # the paper's numbers of rollouts; for a GPU

Reproduces Figures 3 and 13 of "Persona Vectors" (arXiv 2507.21509). The vector is read from written answers; with
``--source sampled``, and for a trait without written examples, it is extracted from the model's own responses, as in
the paper. One judge chooses layer and coefficient on half of the evaluation questions and on some of the written
examples'. On the other half, and on questions of the written examples that nothing was fitted on, it and one that
shares neither model nor prompt with it read what the choice does, beside the system prompt, other traits' vectors,
vectors of shuffled labels and random directions of equal coherence. A trait without written examples has one judge,
which was not validated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import persona_lens as pl
from persona_lens.evaluation import Condition, RandomNull
from persona_lens.files import write_bytes_atomically
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import COMPARED_TRAITS, BriefArguments, read_traits, run_each_trait
from persona_lens.reproduction.bench import Bench, NullSize, measure_lengths, note_setting
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.reproduction.layer_sweep import LayerSweep, ScoreAndCoherence, VectorNote
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.streams import Stream
from persona_lens.traits import list_written_traits, load_written_examples


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    temperature: float
    max_new_tokens: int
    extraction_rollouts: int
    coefficients: tuple[float, ...]
    layer_step: int
    sweep_rollouts: int
    n_directions: int
    n_null_questions: int
    confirmation_rollouts: int
    n_chosen_on: int
    n_held_out: int
    n_examples: int | None = None
    max_pairs: int = 5
    max_questions: int = 20


PROFILES = {
    # At the paper's temperature of 1 a 135M model writes much word salad; 0.7 was taken because positive and negative
    # responses to the *extraction* questions separated better there.
    "quick": Profile(0.7, 48, 1, (1.0, 2.0, 3.0), 3, 1, 16, 10, 1, 30, 30),
    "brief": Profile(0.7, 48, 1, (1.0, 2.0), 4, 1, 8, 4, 1, 8, 10),
    "paper": Profile(1.0, 1000, 10, (0.5, 1.0, 1.5, 2.0, 2.5), 1, 10, 16, 20, 10, 50, 50),
    "tiny": Profile(0.7, 8, 1, (1.0, 2.0), 10, 1, 2, 2, 1, 3, 4, 10, max_pairs=2, max_questions=4),
}


@dataclass(frozen=True)
class Arguments(BriefArguments):
    """Sweep one or several traits."""

    source: Literal["written", "sampled"] = "written"
    """Where the vector is from."""


def main(arguments: Arguments) -> None:
    """Run or redraw each trait's sweep."""
    profile = arguments.pick(PROFILES)
    traits = read_traits(arguments.trait, profile.max_pairs, profile.max_questions)  # before any model runs
    for result in run_each_trait(LayerSweep, "layer_sweep", traits, profile, arguments, run):
        write_responses(result, arguments.out / f"layer_sweep_{result.trait}_responses.txt")


def run(model: HookedModel, trait: pl.Trait, profile: Profile, arguments: Arguments) -> LayerSweep:
    """Make judges and vector, sweep, choose, compare."""
    is_written = trait.name in list_written_traits()
    source: str = arguments.source if is_written else "sampled"
    config, run = arguments.begin(model, profile, {"trait": trait.to_dict(), "source": source})
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = prepare_judges(model, trait, once, arguments.share(model), n_examples=profile.n_examples)
    training, judging = (
        load_written_examples(trait.name, half)[: profile.n_examples] if is_written else ()
        for half in ("training", "judging")
    )
    if source == "written":
        vector = read_written_vector(model, trait.name, profile.n_examples, arguments.share(model))
    else:
        sampling = replace(once, rollouts=profile.extraction_rollouts)
        vector = pl.extract_persona_vector(model, trait, judge=judges.choosing, sampling=sampling, run=run)
    # Nothing is judged by what it was chosen on. With ten questions alone not even the unsteered text would be surely
    # coherent, and the rule would leave next to nothing to choose from.
    selection, fresh = (
        (*trait.evaluation_questions[half], *(one.question for one in examples))[:most]
        for half, examples, most in (
            (slice(0, None, 2), training, profile.n_chosen_on), (slice(1, None, 2), judging, profile.n_held_out)
        )
    )  # fmt: skip
    layers = range(0, model.cfg.n_layers, profile.layer_step)
    sampling = replace(once, rollouts=profile.sweep_rollouts)
    sweep = pl.sweep_layers(
        model,
        trait,
        vector,
        coefficients=profile.coefficients,
        layers=layers,
        questions=selection,
        judge=judges.choosing,
        null=RandomNull(profile.n_directions, layers[len(layers) // 2], profile.n_null_questions),
        sampling=sampling,
        run=run,
    )
    prompted = pl.score_conditions(
        model, judges.choosing, [Condition(system=trait.positive_system_prompts[0])], selection, sampling=sampling,
        stream=(Stream.SWEEP,), run=run,
    )  # fmt: skip
    choice = sweep.choose_coherent() or sweep.choose_by_score()
    # An ordinary answer is ordinary whatever the trait.
    lengths = measure_lengths(model, training or load_written_examples(COMPARED_TRAITS[0], "training"))
    step = choice.coefficient * float(vector.norms[choice.layer] / lengths[choice.layer])
    setting = note_setting(
        vector, source, choice.layer, step, choice.coefficient, choice.score.estimate, choice.coherence.estimate
    )
    bench = Bench(model, trait, judges, training, lengths, once, Stream.CONFIRMATION, run, arguments.share(model))
    null = NullSize(profile.n_directions, profile.n_null_questions)
    chosen = {f"{source} vector": (vector, setting)}
    tuning = selection[: null.n_questions]
    compared = bench.compare(chosen, fresh, tuning, null, profile.confirmation_rollouts, profile.n_examples)
    vector.save(arguments.out / f"vector_{trait.name}.safetensors")
    return LayerSweep(
        config=config,
        trait=trait.name,
        validations=judges.validations,
        **vars(compared),
        source=source,
        vector=VectorNote(vector.counts, vector.provenance),
        norms=tuple(vector.norms.tolist()),
        split_half_cosine={name: tuple(values.tolist()) for name, values in vector.split_half_cosine.items()},
        sweep=sweep,
        system_prompt=ScoreAndCoherence(prompted.score(0), prompted.coherence(0)),
        choice=choice,
    )


def write_responses(result: LayerSweep, path: Path) -> None:
    """Write some steered responses as text: the first questions', not the best."""
    plain, steered = (
        result.responses.responses[result.responses.conditions.index(one)] for one in ("unsteered", result.steered)
    )
    choice = result.choice
    lines = [f"{result.trait}: layer {choice.layer} × {choice.coefficient:g} on {result.config['model']['name']}", ""]
    for question, one, two in list(zip(result.responses.questions, plain, steered, strict=True))[:5]:
        lines += [f"Question:  {question}", f"Unsteered: {one[0].strip()}", f"Steered:   {two[0].strip()}", ""]
    write_bytes_atomically(path, "\n".join(lines).encode())


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
