"""What every experiment script understands, and the traits and results that its arguments name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from persona_lens.distributed import RayWorkers
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import EMBEDDED_MODEL, describe_model, load_model
from persona_lens.reproduction.figures import Result, write_results
from persona_lens.run import Run
from persona_lens.storage import ShardStore, collect_versions
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import list_written_traits

R = TypeVar("R", bound=Result)
P = TypeVar("P")
A = TypeVar("A", bound="BaseArguments")

# The paper's, taken where a script needs several traits and is given none.
PAPER_TRAITS = ("evil", "sycophancy", "hallucination")
# Those whose published results stand side by side, each with the others' vectors for a null. Traits whose written
# answers came later are measured where they are named, so that what was published can be made again.
COMPARED_TRAITS = ("empathy", "evil", "formality", "hallucination", "humorous", "sycophancy")


@dataclass(frozen=True)
class BaseArguments:
    """What every script understands."""

    trait: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Bundled trait's name, or path of a trait's JSON file; may be repeated."""
    model: str = EMBEDDED_MODEL
    """Bundled model, Hugging Face name, folder or GGUF file."""
    tiny: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Seconds or a minute: does it run? The figure means nothing."""
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
    """Where unfinished work is kept: killed at any point, the same command goes on where it was."""

    workers: int | None = None
    """Ray processes that share the work, each with its own copy of the model; else it is done in this process."""
    worker_gpus: float = 0.0
    """GPUs for each of them."""

    @property
    def out(self) -> Path:
        """Where results go: one model's never over another's, a trial's never over real ones."""
        if self.folder is not None:
            return self.folder
        part = "tiny" if self.tiny else "" if self.model == EMBEDDED_MODEL else Path(self.model).name
        return Path("figures") / part / self._trial

    @property
    def _trial(self) -> str:
        """Where the results of a profile go that are not the published ones."""
        return ""

    def load_model(self) -> HookedModel:
        """Load the model."""
        return load_model(self.model, dtype=self.dtype)

    def begin(self, model: HookedModel, profile: Any, parts: Mapping[str, Any]) -> tuple[dict[str, Any], Run]:
        """Return all that a run depends on, and the run, whose finished shards have a folder of their own.

        Args:
            model: The model.
            profile: A dataclass.
            parts: What is the run's own, beside model, profile, seed and versions.
        """
        config = {"model": describe_model(model).to_json(), "profile": asdict(profile), **parts}
        config |= {"seed": self.seed, "versions": collect_versions()}
        store = ShardStore(self.runs, config)
        print(f"unfinished work is kept in {store.folder}")
        workers = None if self.workers is None else RayWorkers(self.workers, gpus=self.worker_gpus)
        return config, Run(store, workers=workers)

    def share(self, model: HookedModel) -> Run:
        """Return the run in which scripts keep what others take too, such as judges; each part says what it is of."""
        config = {"model": describe_model(model).to_json(), "seed": self.seed, "versions": collect_versions()}
        return Run(ShardStore(self.runs, config))

    def read(self, kind: type[R], name: str) -> R:
        """Read the result of an earlier run."""
        path = self.out / f"{name}.json"
        if not path.exists():
            raise SystemExit(f"--replot needs {path}, which an earlier run writes. Run once without --replot.")
        return kind.load(path)


@dataclass(frozen=True)
class ProfiledArguments(BaseArguments):
    """What scripts understand that come in several sizes."""

    profile: str = "quick"
    """The size."""

    def pick(self, profiles: Mapping[str, P]) -> P:
        """Return the profile asked for, or `tiny`."""
        return profiles["tiny" if self.tiny else self.profile]


@dataclass(frozen=True)
class CommonArguments(ProfiledArguments):
    """What most scripts understand."""

    profile: Literal["quick", "paper"] = "quick"
    """`quick` for two cores, `paper` for a GPU."""


@dataclass(frozen=True)
class BriefArguments(ProfiledArguments):
    """What scripts understand whose figures `make figures` makes."""

    profile: Literal["brief", "quick", "paper"] = "quick"
    """`brief` for a first look, with wider intervals, into `figures/brief`; `quick` for two cores, `paper` for a
    GPU."""

    @property
    def _trial(self) -> str:
        return "brief" if self.profile == "brief" and not self.tiny else ""


@dataclass(frozen=True)
class LayerArguments(CommonArguments):
    """What scripts understand that work at one layer."""

    layer: int | None = None
    """Zero-based block index; else the one that layer_sweep.py chose, else the middle one."""

    def load_model(self) -> HookedModel:
        """Load the model; refuse a layer that it does not have."""
        model = super().load_model()
        if self.layer is not None and not 0 <= self.layer < model.cfg.n_layers:
            raise SystemExit(f"--layer must be in [0, {model.cfg.n_layers}), the model's layers. Got {self.layer}.")
        return model


def run_each_trait(
    kind: type[R],
    stem: str,
    traits: Sequence[Trait],
    profile: P,
    arguments: A,
    run: Callable[[HookedModel, Trait, P, A], R],
) -> list[R]:
    """Run each trait, or read its result with --replot; write result and figure."""
    names = [f"{stem}_{trait.name}" for trait in traits]
    if arguments.replot:
        read = {name: arguments.read(kind, name) for name in names}
        write_results(read, arguments.out)  # all with one browser
        return list(read.values())
    model = arguments.load_model()
    results = []
    for name, trait in zip(names, traits, strict=True):
        result = run(model, trait, profile, arguments)
        result.write(arguments.out, name)
        print(f"{trait.name}: {arguments.out / name}.html")
        results.append(result)
    return results


def read_traits(names: Sequence[str], n_pairs: int, n_questions: int) -> list[Trait]:
    """Load the traits asked for, cut down to their first instruction pairs and questions; refuse to go on with none."""
    if not names:
        raise SystemExit(f"--trait is missing: one of {', '.join(list_traits())}, or the path of a trait's file.")
    traits = [Trait.from_json(name) if name.endswith(".json") else load_trait(name) for name in names]
    return [
        replace(
            trait,
            instruction_pairs=trait.instruction_pairs[:n_pairs],
            extraction_questions=trait.extraction_questions[:n_questions],
            evaluation_questions=trait.evaluation_questions[:n_questions],
        )
        for trait in traits
    ]


def check_written(names: Sequence[str]) -> None:
    """Refuse traits without written answers, by name, before any model runs."""
    unwritten = [name for name in dict.fromkeys(names) if name not in list_written_traits()]
    if unwritten:
        known = ", ".join(list_written_traits())
        raise SystemExit(f"--trait must be one of {known}, which have written answers. Got {', '.join(unwritten)}.")
