"""A screened dataset on disk: its scores, what they say of the whole, and how near cheaper scores come."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.conversations import UNREAD, BadRow
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.records import Record
from persona_lens.screening.files import RECORD, SCORED, find_checksum, read_mark, read_record, shard_path
from persona_lens.statistics import Interval, bootstrap_mean, bootstrap_pearson_r

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_N_LISTED = 1000


@checked
@dataclass(frozen=True)
class ApproximationCheck(Record):
    """How near the paper's cheaper ways come to the exact projection difference of a dataset.

    Args:
        exact: ΔP over all samples.
        subset: ΔP over a random subset.
        n_subset: Its size.
        last_prompt: ΔP with the last prompt token's projection in place of the base response's.
        r_last_prompt: Correlation of that with the exact ΔP over samples.
        r_raw: Correlation of the raw projection with the exact ΔP over samples.
    """

    exact: Interval
    subset: Interval
    n_subset: int
    last_prompt: Interval
    r_last_prompt: Interval
    r_raw: Interval


@checked
@dataclass(frozen=True, eq=False)
class Screening:
    """A screened dataset, on disk.

    Args:
        folder: Where it is.
        traits: Traits screened for.
        counts: Rows by what became of them: ``scored``, or the reason why not.
        n_cut: Scored rows whose response goes on beyond what was projected.
        n_without_base: Scored rows to whose prompt the model says nothing itself: they have no ΔP.
        max_rows: Rows that were read at most; None for all.
        config: What the scores depend on.
        shards: Checksum of each shard's content, SHA-256.
        n_with_controls: Scored rows whose messages spell control tokens, such as ``<|im_end|>``; they were read as
            text.
        n_unfinished: Scored rows to whose prompt the model only thinks, without coming to an answer; they are among
            those without a base.
        n_with_further: Conversations with more answers than the one that was read; ``ScreenSettings.turn`` says which.
            None with ``turn="all"``.
    """

    folder: Path
    traits: tuple[str, ...]
    counts: dict[str, int]
    n_cut: int
    n_without_base: int
    max_rows: int | None
    config: dict[str, Any]
    shards: tuple[str, ...]
    n_with_controls: int = 0
    n_unfinished: int = 0
    n_with_further: int = 0

    @property
    def n_bad(self) -> int:
        """Rows without a projection difference: those not scored, and those to whose prompt the model says nothing."""
        return sum(self.counts.values()) - self.counts.get(SCORED, 0) + self.n_without_base

    @property
    def is_whole(self) -> bool:
        """Whether the data were read to their end, or to ``max_rows``; else nobody knows how many rows are missing."""
        return not UNREAD & self.counts.keys()

    @property
    def rows(self) -> datasets.Dataset:
        """Every row in order, memory-mapped: ``status`` is ``scored`` or the reason why a row was not.

        A scored row has ``question``, ``response``, ``base_response`` and for each trait ``TRAIT.raw``, ``.base``,
        ``.prompt`` and ``.delta``, in residual-stream units; ``controls`` names control tokens that it spells. With
        ``turn="all"`` it has ``answers``, with the same of each, and for each trait ``TRAIT.answer``: which of them,
        from 1, has the highest ΔP; the row's numbers are that answer's, its texts those of the first trait's.
        """
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in self._list_shards()])

    @property
    def bad_rows(self) -> tuple[BadRow, ...]:
        """The first thousand rows that were not scored, each with its place, the reason and what came."""
        rows = self.rows
        bad = [index for index, status in enumerate(rows["status"][:]) if status != SCORED][:_N_LISTED]
        found = (rows[index] for index in bad)
        return tuple(BadRow(row["place"], row["index"], row["status"], row["detail"]) for row in found)

    @property
    def digest(self) -> str:
        """A hash of the rows that were screened and of what the scores depend on."""
        rows = [read_mark(path) for path in self._list_shards()]
        return hashlib.sha256(json.dumps([rows, self.config]).encode()).hexdigest()[:16]

    def _list_shards(self) -> list[Path]:
        paths = [shard_path(self.folder, index) for index in range(len(self.shards))]
        for path in paths:
            if not path.is_file():
                rule, hint = f"hold {path.name}", "Run the screening again: it is computed anew."
                raise FileFormatError.of("folder", rule, str(self.folder), hint)
        return paths

    def values(self, trait: str, column: str = "delta") -> Float[Tensor, " sample"]:
        """Return one number for each scored row, in order, to compute with.

        Rows that were not scored are left out, of ``delta`` and ``base`` also those without a base response, so the
        numbers need not stand beside the data's rows. ``rows["TRAIT.delta"]`` has an entry for each, None for these.

        Raises:
            InvalidArgumentError: A trait or column that was not screened for.
        """
        self._check_trait(trait)
        if column not in ("raw", "base", "prompt", "delta"):
            raise InvalidArgumentError.of("column", "be raw, base, prompt or delta", column)
        return torch.tensor([v for v in self.rows[f"{trait}.{column}"][:] if v is not None], dtype=torch.float64)

    def _check_trait(self, trait: str) -> None:
        if trait not in self.traits:
            raise InvalidArgumentError.of("trait", f"be one of {self.traits}", trait)

    def measure(self, trait: str) -> Interval:
        """Return the dataset's projection difference with its 95 % bootstrap interval over samples; NaN for one.

        With ``turn="all"`` the mean of each row's highest answer, which lies above the mean of all answers by chance
        alone: compare it with data whose rows have as many.
        """
        values = self.values(trait)
        return bootstrap_mean(values) if len(values) > 1 else Interval.missing()

    def threshold(self, trait: str, quantile: float = 0.95) -> float:
        """Return the ΔP below which a fraction of this dataset's samples lies; for data that are called clean.

        Raises:
            InvalidArgumentError: A quantile outside (0, 1), or no sample with a ΔP.

        Reference:
            Persona Vectors (arXiv 2507.21509), appendix K.
        """
        if not 0 < quantile < 1:
            raise InvalidArgumentError.of("quantile", "be in (0, 1)", quantile)
        values = self.values(trait)
        if len(values) == 0:
            rule, got = "hold samples with a projection difference", self.counts
            raise InvalidArgumentError.of("screening", rule, got)
        return float(np.quantile(values.numpy(), quantile))

    def check_approximations(self, trait: str, *, n_subset: int = 100, seed: int = 0) -> ApproximationCheck:
        """Compare the paper's two approximations, and the raw projection, with the exact projection difference.

        With ``turn="all"`` on the answers with the highest exact one.

        Args:
            trait: Which.
            n_subset: Samples of the random subset; all of them if there are fewer.
            seed: Draws the subset.

        Raises:
            InvalidArgumentError: A trait that was not screened for, a screening that is an approximation itself, or
                fewer than three samples.

        Reference:
            Persona Vectors (arXiv 2507.21509), appendix I.
        """
        self._check_trait(trait)
        if n_subset < 2:
            raise InvalidArgumentError.of("n_subset", "be at least 2", n_subset)
        if self.config["settings"]["base"] != "sampled":
            rule, got = "be made with base='sampled'", self.config["settings"]["base"]
            raise InvalidArgumentError.of("screening", rule, got)
        rows = self.rows
        columns = [rows[f"{trait}.{name}"][:] for name in ("delta", "raw", "prompt")]
        whole = [row for row in zip(*columns, strict=True) if row[0] is not None]
        if len(whole) < 3:
            raise InvalidArgumentError.of("screening", "hold at least 3 samples with a ΔP", len(whole))
        delta, raw, prompt = torch.tensor(whole, dtype=torch.float64).T
        chosen = torch.randperm(len(delta), generator=torch.Generator().manual_seed(seed))[:n_subset]
        return ApproximationCheck(
            exact=bootstrap_mean(delta),
            subset=bootstrap_mean(delta[chosen]),
            n_subset=len(chosen),
            last_prompt=bootstrap_mean(raw - prompt),
            r_last_prompt=bootstrap_pearson_r(raw - prompt, delta),
            r_raw=bootstrap_pearson_r(raw, delta),
        )

    @classmethod
    def load(cls, folder: str | Path) -> Screening:
        """Read what :func:`screen` wrote.

        Raises:
            FileNotFoundError: No such screening.
            FileFormatError: One that was not finished, or whose record or shards are missing, cut or damaged; every
                shard is read for that.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise FileNotFoundError(f"`folder` must hold a screening, with {RECORD}. Got {str(folder)!r}.")
        content = read_record(folder)
        hint = "Run the same screening again: it goes on where it was, and computes anew what is damaged."
        if content is None:
            raise FileFormatError.of("folder", f"hold {RECORD} as it was written", str(folder), hint)
        if "counts" not in content:
            raise FileFormatError.of("folder", "hold a finished screening", str(folder), hint)
        for index, checksum in enumerate(content["shards"]):
            path = shard_path(folder, index)
            if find_checksum(path) != checksum:
                raise FileFormatError.of("folder", f"hold {path.name} as it was written", str(folder), hint)
        config = content["config"]
        counted = (content["counts"], content["n_cut"], content["n_without_base"], content["max_rows"])
        n_with_controls = content.get("n_with_controls", 0)  # none in records of earlier versions
        rare = {name: content.get(name, 0) for name in ("n_unfinished", "n_with_further")}
        shards = tuple(content["shards"])
        return cls(folder, tuple(config["traits"]), *counted, config, shards, n_with_controls, **rare)

    def plot(self) -> Figure:
        """Draw each trait's distribution of ΔP; returns a plotly Figure."""
        from persona_lens.plots.screening import plot_screening  # plotly is imported only when drawing

        return plot_screening(self, {})

    def __repr__(self) -> str:
        return f"Screening({self.folder.name!r}, {self.counts}, traits: {', '.join(self.traits)})"
