"""What several experiment scripts share: traits, judge and vector, and sampling where each row has its intervention."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

import persona_lens as pl
from persona_lens.judges.likelihood import LikelihoodCalibration
from persona_lens.models.loading import EMBEDDED_MODEL
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.storage import Shard

# Configurations sampled and judged between two saves. Fixed: a shard is one stream, and rows share its batches.
_AT_ONCE = 8


@dataclass(frozen=True)
class BaseArguments:
    """What every script understands."""

    trait: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Bundled trait's name, or path of a trait's JSON file; may be repeated."""
    model: str = EMBEDDED_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    tiny: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Seconds instead of minutes; the figure means nothing."""
    replot: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Redraw from the results already written; no model runs."""
    seed: int = 0
    """Seed of all sampling."""
    dtype: str = "auto"
    """`auto`, `float32` or `bfloat16`."""
    folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None
    """Where results and figures go; vectors and layer sweeps are looked for there too. If left out: `figures`, for
    another than the bundled model `figures/MODEL`, with --tiny `figures/tiny`."""
    runs: Path = Path(".persona-lens-runs")
    """Where unfinished work is kept."""

    @property
    def out(self) -> Path:
        """Where results go: one model's never over another's, a trial's never over real ones."""
        if self.folder is not None:
            return self.folder
        part = "tiny" if self.tiny else "" if self.model == EMBEDDED_MODEL else Path(self.model).name
        return Path("figures") / part


@dataclass(frozen=True)
class CommonArguments(BaseArguments):
    """What most scripts understand."""

    profile: Literal["quick", "paper"] = "quick"
    """`quick` for two cores, `paper` for a GPU."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn, for the functions that take these as keywords."""

    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, eq=False)
class Configuration:
    """One way to sample: what is done to the residual stream, and under which system prompt."""

    sites: tuple[pl.SiteIntervention, ...] = ()
    system: str | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """Trait scores and coherences (0 to 100), averaged over rollouts; NaN where the judge gave none."""

    score: Float[Tensor, "configuration question"]
    coherence: Float[Tensor, "configuration question"]
    examples: list[str]
    n_responses: int
    n_unscored: int


def read_traits(names: Sequence[str], n_pairs: int, n_questions: int) -> list[pl.Trait]:
    """Load the traits asked for, cut down; refuse to go on with none."""
    if not names:
        raise SystemExit(f"--trait is missing: one of {', '.join(pl.list_traits())}, or the path of a trait's file.")
    return [read_trait(name, n_pairs, n_questions) for name in names]


def read_trait(name: str, n_pairs: int, n_questions: int) -> pl.Trait:
    """Load a bundled trait, or one from a file, cut down to its first instruction pairs and questions."""
    trait = pl.Trait.from_json(name) if name.endswith(".json") else pl.load_trait(name)
    return replace(
        trait,
        instruction_pairs=trait.instruction_pairs[:n_pairs],
        extraction_questions=trait.extraction_questions[:n_questions],
        evaluation_questions=trait.evaluation_questions[:n_questions],
    )


def read_results(path: Path) -> dict[str, Any]:
    """Read what an earlier run wrote."""
    if not path.exists():
        raise SystemExit(f"--replot needs {path}, which an earlier run writes. Run once without --replot.")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def prepare_judge(
    model: Any, trait: pl.Trait, n_pairs: int, sampling: Sampling, store: pl.ShardStore
) -> pl.judges.LikelihoodJudge:
    """Calibrate the judge on the extraction questions, or read its calibration back."""

    def calibrate() -> Shard:
        judge = pl.judges.calibrate_likelihood_judge(model, trait, n_pairs=n_pairs, **asdict(sampling))
        return Shard(records=asdict(judge.calibration))

    records = store.load_or_compute(f"calibration-{trait.name}", calibrate).records
    return pl.judges.LikelihoodJudge(model, trait, n_pairs, LikelihoodCalibration(**records))


def extract_vector(
    model: Any, trait: pl.Trait, judge: pl.judges.Judge, rollouts: int, sampling: Sampling, store: pl.ShardStore
) -> pl.PersonaVector:
    """Extract the vector, keeping what is finished."""
    return pl.extract_persona_vector(
        model, trait, judge=judge, rollouts=rollouts, store=store, progress=pl.show_progress, **asdict(sampling)
    )


def find_vector(model: Any, name: str, folder: Path, **settings: Any) -> tuple[pl.PersonaVector | None, str]:
    """Read the vector that layer_sweep.py left if it is this model's and was made so; and say where it is from."""
    path = folder / f"vector_{name}.safetensors"
    if path.exists():
        vector = pl.PersonaVector.load(path)
        is_ours = (vector.trait, vector.model.fingerprint) == (name, pl.describe_model(model).fingerprint)
        if is_ours and all(vector.provenance.get(key) == value for key, value in settings.items()):
            return vector, f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return None, "extracted by this run"


def choose_layer(model: Any, trait: str, folder: Path, asked: int | None) -> tuple[int, str]:
    """Return a layer and where it is from: the one asked for, else layer_sweep.py's of this model, else the middle."""
    n_layers = model.cfg.n_layers
    if asked is not None:
        if not 0 <= asked < n_layers:
            raise SystemExit(f"--layer must be in [0, {n_layers}). Got {asked}. The model has {n_layers} layers.")
        return asked, "--layer"
    path = folder / f"layer_sweep_{trait}.json"
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["config"]["model"]["fingerprint"] == pl.describe_model(model).fingerprint:
            return content["confirmation"]["layer"], f"chosen by steering in {path.name}"
    return n_layers // 2, "middle layer"


def score_configurations(
    model: Any,
    judge: pl.judges.Judge,
    configurations: Sequence[Configuration],
    questions: Sequence[str],
    rollouts: int,
    stream: tuple[int, ...],
    sampling: Sampling,
    store: pl.ShardStore,
) -> Scores:
    """Sample and judge every configuration; all of them see the same random numbers."""
    settings = pl.Sampling(
        max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, positions="response"
    )
    shards = []
    with pl.show_progress("configurations", len(configurations)) as advance:
        for at in range(0, len(configurations), _AT_ONCE):
            chunk = configurations[at : at + _AT_ONCE]

            def compute(chunk: Sequence[Configuration] = chunk) -> Shard:
                requests = [
                    pl.models.RolloutRequest(question, (*stream, q, r), one.system, one.sites)
                    for one in chunk
                    for q, question in enumerate(questions)
                    for r in range(rollouts)
                ]
                sampled = pl.models.sample_rollouts(model, requests, settings)
                responses = [s.response for s in sampled]
                judged = judge.score([s.request.question for s in sampled], responses)
                shape = (len(chunk), len(questions), rollouts)
                values = [[j.score for j in judged], [j.coherence for j in judged]]
                table = torch.tensor([[float("nan") if v is None else v for v in row] for row in values])
                return Shard({"table": table.reshape(2, *shape)}, responses[:: len(questions) * rollouts])

            shards.append(store.load_or_compute(f"responses-{stream[1]}-{at:06d}", compute))
            advance(len(chunk))
    table = torch.cat([shard.tensors["table"] for shard in shards], dim=1)
    score, coherence = table.nanmean(dim=-1)
    examples = [text for shard in shards for text in shard.records]
    return Scores(score, coherence, examples, table[0].numel(), int(table[0].isnan().sum()))


def describe_mean(values: Float[Tensor, " question"]) -> dict[str, float | None]:
    """Return the mean with its bootstrap interval over questions, as JSON-able values; null where there is none."""
    present = values[~values.isnan()]
    if len(present) < 2:
        return {"estimate": None, "low": None, "high": None}
    return describe_interval(bootstrap_mean(present))


def describe_interval(interval: Interval) -> dict[str, float | None]:
    """Return an interval as JSON-able values; null for NaN."""
    values = {key: getattr(interval, key) for key in ("estimate", "low", "high")}
    return {key: None if value != value else round(value, 4) for key, value in values.items()}


def describe_judge(judge: pl.judges.LikelihoodJudge) -> dict[str, Any]:
    """Return what the scores rest on."""
    return {"name": judge.name, "n_pairs": judge.n_pairs, "calibration": asdict(judge.calibration)}
