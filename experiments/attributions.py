"""Which way of screening finds the rows that show a trait: ΔP, gradient similarity or a judge, and at what cost?

    python experiments/attributions.py                       # half an hour of one core

One file mixes the written answers of several traits, from the half that nothing was made from: ordinary, mild and overt
ones, opposite ones, and ones with the trait's style alone. Every row is scored for every trait by its projection
difference, along a vector of overt less ordinary answers and along one of overt less opposite ones; by the cosine of
its gradient with the mean gradient of a few written rows that show the trait, with that of all that the vector was read
from, and with that less the mean of their ordinary answers (the first vector's pairs); by two judges, by its loss under
the model, by its length, and at random. Reported is how well each finds the overt and the mild rows of a trait among
the answers without it to the same questions, which no topic can tell apart; then among all rows of the file; how each
tells ordinary answers to the trait's questions from other traits' rows, which is what topic alone does; and what it
costs in seconds of one core. Signs are fixed beforehand: a high loss and a long answer count as suspect. All is made
from the same pairs of the training half, but for the judges, which were fitted on every kind of answer of that half;
the layer is that of the layer sweep, which steered on other questions.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from results.attributions import (
    COMPUTED,
    CONTRAST,
    DELTA,
    DELTA_OPPOSITE,
    FEW,
    FIRST,
    KINDS,
    LENGTH,
    LOSS,
    METHODS,
    RANDOM,
    RAW,
    ROWS,
    SECOND,
    Attributions,
    FileRow,
    Piece,
    add_costs,
    compare_methods,
    join_columns,
    name_column,
)
from torch import Tensor

import persona_lens as pl
from persona_lens.finetuning import measure_task_loss
from persona_lens.finetuning.domains import Level
from persona_lens.judges import Judge
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import PAPER_TRAITS, CommonArguments, check_written, read_traits
from persona_lens.reproduction.costs import timed
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, prepare_judges
from persona_lens.reproduction.kits import find_sources
from persona_lens.reproduction.training import read_trait_rows
from persona_lens.screening import GradientSketch, MeanGradient, ScreenSettings
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.traits import load_written_examples

NAME = "attributions"


@dataclass(frozen=True)
class Profile:
    """How much is screened, by what.

    Args:
        n_questions: Questions of each trait in the file; each has five answers.
        n_pairs: Written pairs that a vector is read from, and the larger reference of the gradients.
        n_few: Written rows of the smaller one.
        screening: What is read of an answer.
        sketch: How gradients are made small.
        max_new_tokens: Of the responses that the judges are measured for.
        temperature: Of those.
        n_examples: Most written examples that judges are made from; None takes all.
    """

    n_questions: int
    n_pairs: int
    n_few: int
    screening: ScreenSettings = field(default_factory=ScreenSettings)
    sketch: GradientSketch = field(default_factory=GradientSketch)
    max_new_tokens: int = 48
    temperature: float = 0.7
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(14, 24, 8),
    "paper": Profile(40, 40, 8, ScreenSettings(max_response_tokens=300), GradientSketch(64), 1000, 1.0),
    "tiny": Profile(3, 4, 2, ScreenSettings(max_response_tokens=8), GradientSketch(2), 6, n_examples=10),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(Attributions, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> Attributions:
    """Score the file's rows by every method, for every trait."""
    profile = arguments.pick(PROFILES)
    names = tuple(dict.fromkeys(arguments.trait)) or PAPER_TRAITS
    traits = read_traits(names, 5, 20)
    names = tuple(trait.name for trait in traits)
    check_written(names)
    model = arguments.load_model()
    layers = {name: find_sources(model, name, arguments.out).layer for name in names}
    parts = {"experiment": NAME, "traits": [trait.to_dict() for trait in traits], "layers": layers}
    config, run = arguments.begin(model, profile, parts)
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = {
        trait.name: prepare_judges(model, trait, once, arguments.share(model), n_examples=profile.n_examples)
        for trait in traits
    }
    rows = mix_file(names, profile.n_questions)
    warm_up(model, judges.values())
    setup: dict[str, list[Piece]] = {}
    vectors: dict[str, pl.PersonaVector] = {}
    references: dict[str, MeanGradient] = {}
    for name in names:
        read, took = read_vectors(model, name, profile)
        setup.setdefault(DELTA, []).append(run.load_or_measure(f"vectors-{name}", Piece, partial(Piece, {}, took, 0)))
        vectors |= {name_column(name, method): one for method, one in read.items()}
        shard = run.load_or_compute(f"references-{name}", partial(read_references, model, name, profile))
        setup.setdefault(CONTRAST, []).append(Piece({}, shard.records["core_seconds"], 0))
        for method, one in unpack_references(shard, model, profile).items():
            references[name_column(name, method)] = one
    on = {name_column(name, method): layers[name] for name in names for method in (DELTA, DELTA_OPPOSITE)}
    judged: dict[str, list[Piece]] = {}
    for name, own in judges.items():
        for tag, method, judge in (("first", FIRST, own.reader), ("second", SECOND, own.sentences)):
            column = name_column(name, method)
            work = partial(measure, partial(judge_rows, column, judge, rows), len(rows))
            judged.setdefault(method, []).append(run.load_or_measure(f"{tag}-{name}", Piece, work))
    by_part: dict[str, list[Piece]] = {}
    for name in names:
        part = [row.to_conversation() for row in rows if row.trait == name]
        folder = run.folder / f"screened-{name}"
        for tag, method, compute in (
            ("loss", LOSS, partial(read_losses, model, part)),
            ("delta", DELTA, partial(screen_rows, model, part, vectors, on, folder, profile.screening)),
            ("gradient", CONTRAST, partial(compare_gradients, model, part, references, profile.screening)),
        ):
            work = partial(measure, compute, len(part))
            by_part.setdefault(method, []).append(run.load_or_measure(f"{tag}-{name}", Piece, work))
    columns = join_columns(names, rows, by_part, judged)
    drawn = np.random.default_rng((arguments.seed, Stream.ATTRIBUTIONS)).random((len(names), len(rows)))
    found = []
    for index, name in enumerate(names):
        own_columns = {method: columns[name_column(name, method)] for method in METHODS if method in COMPUTED}
        others = {
            LOSS: columns[LOSS],
            LENGTH: [float(len(row.response)) for row in rows],
            RANDOM: drawn[index].tolist(),
        }
        validations = judges[name].validations[:2]
        found.append(compare_methods(name, layers[name], validations, rows, own_columns | others))
    return Attributions(
        config=config,
        traits=tuple(found),
        n_rows=len(rows),
        n_questions=profile.n_questions,
        n_pairs=profile.n_pairs,
        n_few=profile.n_few,
        costs=add_costs(by_part, judged, setup, len(names)),
        reference_bytes=next(iter(references.values())).n_bytes,
        block_bytes=sum(one.numel() * one.element_size() for block in model.blocks for one in block.parameters()),
    )


def mix_file(traits: Sequence[str], n_questions: int) -> list[FileRow]:
    """Return every kind of written answer to each trait's first questions of the judging half."""
    return [
        FileRow(trait, index, kind, example.question, getattr(example, kind))
        for trait in traits
        for index, example in enumerate(load_written_examples(trait, "judging")[:n_questions])
        for kind in KINDS
    ]


def warm_up(model: HookedModel, judges: Iterable[Judges]) -> None:
    """Let each kind of work run once, so that no row pays for what only the first one takes."""
    row = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
    pl.screening.read_gradient(model, row)
    for one in judges:
        for judge in (one.reader, one.sentences):
            judge.score(["Hi"], ["Hello."])


def measure(work: Callable[[], dict[str, list[float | None]]], n_rows: int) -> Piece:
    """Score rows and say what it took."""
    costs: dict[str, float] = {}
    with timed(costs, "work"):
        values = work()
    return Piece({name: tuple(column) for name, column in values.items()}, costs["work"], n_rows)


def read_vectors(model: HookedModel, trait: str, profile: Profile) -> tuple[dict[str, pl.PersonaVector], float]:
    """Read a trait's vectors from the training half; return what the first took beside them."""
    examples = load_written_examples(trait, "training")[: profile.n_pairs]
    costs: dict[str, float] = {}
    with timed(costs, trait):
        first = pl.read_persona_vector(model, trait, examples, against="ordinary")
    return {DELTA: first, DELTA_OPPOSITE: pl.read_persona_vector(model, trait, examples)}, costs[trait]


def read_references(model: HookedModel, trait: str, profile: Profile) -> Shard:
    """Read the mean gradients of written rows of the training half; say what the contrast took, both its sides."""

    def read(level: Level, n_rows: int) -> MeanGradient:
        rows = read_trait_rows(trait, level, "training", n_rows)
        return pl.screening.read_gradient(model, rows, settings=profile.screening, sketch=profile.sketch)

    costs: dict[str, float] = {}
    with timed(costs, trait):
        overt, ordinary = read("II", profile.n_pairs), read("normal", profile.n_pairs)
    found = {FEW: read("II", profile.n_few), ROWS: overt, CONTRAST: overt - ordinary}
    tensors = {f"{method}|{name}": one for method, read in found.items() for name, one in read.by_weight.items()}
    return Shard(tensors, {"core_seconds": costs[trait], "n_rows": {name: one.n_rows for name, one in found.items()}})


def unpack_references(shard: Shard, model: HookedModel, profile: Profile) -> dict[str, MeanGradient]:
    """Return the mean gradients that a shard keeps, by method."""
    info = pl.describe_model(model)
    by_method: dict[str, dict[str, Tensor]] = {}
    for key, values in shard.tensors.items():
        method, _, name = key.partition("|")
        by_method.setdefault(method, {})[name] = values
    n_rows = shard.records["n_rows"]
    return {name: MeanGradient(one, info, profile.sketch, n_rows[name]) for name, one in by_method.items()}


def judge_rows(column: str, judge: Judge, rows: Sequence[FileRow]) -> dict[str, list[float | None]]:
    """Let a judge score every row."""
    judged = judge.score([row.question for row in rows], [row.response for row in rows])
    return {column: [one.score for one in judged]}


def read_losses(model: HookedModel, part: Sequence[Mapping[str, object]]) -> dict[str, list[float | None]]:
    """Return each row's loss, in nats a token."""
    return {LOSS: measure_task_loss(model, part).tolist()}


def screen_rows(
    model: HookedModel,
    part: Sequence[Mapping[str, object]],
    vectors: Mapping[str, pl.PersonaVector],
    layers: Mapping[str, int],
    folder: Path,
    settings: ScreenSettings,
) -> dict[str, list[float | None]]:
    """Return each row's projection difference along each vector, and the projection on the first, in one pass."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: what it did would be timed as nothing
    found = pl.screen(model, part, vectors, folder, layers=layers, settings=settings, shard_rows=len(part))
    columns = {column: found.rows[f"{column}.delta"][:] for column in vectors}
    raw = {
        column.replace(DELTA, RAW): found.rows[f"{column}.raw"][:]
        for column in vectors
        if column.endswith(f": {DELTA}")
    }
    return columns | raw


def compare_gradients(
    model: HookedModel,
    part: Sequence[Mapping[str, object]],
    references: Mapping[str, MeanGradient],
    settings: ScreenSettings,
) -> dict[str, list[float | None]]:
    """Return the cosine of each row's gradient with every reference, in one pass."""
    found = pl.screening.score_gradients(model, part, references, settings=settings)
    return {name: list(column) for name, column in found.similarity.items()}


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
