"""The work of screening in pieces: shards of rows, scored one by one and written whole, by whichever process."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from persona_lens.conversations import BadRow, Conversation
from persona_lens.errors import FileFormatError, InvalidArgumentError, PersonaLensError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo
from persona_lens.progress_bars import Advance, count_nothing
from persona_lens.screening.files import (
    RECORD,
    SCORED,
    find_checksum,
    list_shards,
    read_mark,
    read_record,
    read_shard,
    shard_path,
    write_record,
)
from persona_lens.screening.scores import ScoredRow, ScreenSettings, Turn, score_rows
from persona_lens.storage import collect_versions
from persona_lens.vectors.persona_vector import PersonaVector

Source: TypeAlias = str | Path | datasets.Dataset | datasets.IterableDataset | Iterable[Any]
# What is said of a scored row to whose prompt the model thinks without coming to an answer.
_UNFINISHED = "the model's own response is an unfinished thought"
# How a response with its thought is written as text: since version 2 without the markers, a blank line between them.
_TEXT_OF_RESPONSES = 2
Rows: TypeAlias = Sequence[Conversation | BadRow]


@dataclass(frozen=True, eq=False)
class ScreenPlan:
    """What is done to every shard; the same in every process.

    Args:
        units: By trait, a zero-based block index and the unit direction there.
        settings: How rows are scored.
        shard_rows: Rows of a shard.
        max_rows: Rows to read; None for all.
        config: What the scores depend on, as it is written beside them.
    """

    units: dict[str, tuple[int, Float[Tensor, " d_model"]]]
    settings: ScreenSettings
    shard_rows: int
    max_rows: int | None
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """A hash of what the scores depend on besides the rows."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]


def check_by_trait(vectors: Mapping[str, PersonaVector], layers: Mapping[str, int]) -> None:
    """Refuse what is no mapping, such as one vector or one layer.

    Raises:
        InvalidArgumentError: One of both is none.
    """
    for name, given, example in (("vectors", vectors, "{'evil': vector}"), ("layers", layers, "{'evil': 15}")):
        if not isinstance(given, Mapping):
            raise InvalidArgumentError.of(name, f"be a mapping by trait, such as {example}", given)


def check_sizes(shard_rows: int, max_rows: int | None) -> None:
    """Refuse numbers of rows below 1.

    Raises:
        InvalidArgumentError: One is.
    """
    for name, number in (("shard_rows", shard_rows), ("max_rows", 1 if max_rows is None else max_rows)):
        if number < 1:
            raise InvalidArgumentError.of(name, "be at least 1", number)


def plan_screening(
    info: ModelInfo,
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
    settings: ScreenSettings,
    shard_rows: int,
    max_rows: int | None,
) -> ScreenPlan:
    """Check the arguments of a screening and put them together.

    Raises:
        InvalidArgumentError: No vector, names that ``layers`` lacks, or a number below 1.
        LayerOutOfRangeError: A layer that the model does not have.
    """
    if not vectors or vectors.keys() != layers.keys():
        rule = f"name the traits of `vectors`, {sorted(vectors)}, at least one"
        raise InvalidArgumentError.of("layers", rule, sorted(layers))
    check_sizes(shard_rows, max_rows)
    for layer in layers.values():
        check_layer(layer, info.n_layers)
    units = {trait: (layers[trait], vector.unit(layers[trait]).cpu()) for trait, vector in vectors.items()}
    config = {
        "model": info.to_json(),
        "traits": list(vectors),
        "layers": dict(layers),
        "vectors": {
            trait: hashlib.sha256(unit.numpy().tobytes()).hexdigest()[:16] for trait, (_, unit) in units.items()
        },
        "norms": {trait: float(vector.norms[layers[trait]]) for trait, vector in vectors.items()},
        "settings": settings.to_json(),
        "shard_rows": shard_rows,
        "versions": collect_versions(),
    }
    if settings.part == "response":
        config["text"] = _TEXT_OF_RESPONSES  # the other parts' texts are as they always were
    return ScreenPlan(units, settings, shard_rows, max_rows, config)


def check_data(rows: Iterable[Conversation | BadRow], name: str) -> None:
    """Read up to the first conversation.

    Args:
        rows: As they come.
        name: Of the parameter that they came by.

    Raises:
        InvalidArgumentError: There is none.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Conversation):
            return
        counts[row.reason] += 1
    raise _refuse_data(counts, name)


def _refuse_data(counts: Mapping[str, int], name: str) -> PersonaLensError:
    rule, found = "hold a conversation that can be scored", dict(counts) or "no row at all"
    hint = 'A row is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
    hint += 'or {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}.'
    return InvalidArgumentError.of(name, rule, found, hint)


def check_out(folder: Path, config: Mapping[str, Any], max_rows: int | None) -> None:
    """Find that a folder is new, or this same screening's.

    Args:
        folder: Where scores are to go.
        config: What is known of what they depend on; as much of it as is there is compared.
        max_rows: Rows to read; None for all.

    Raises:
        InvalidArgumentError: It holds another screening, one of more rows, or other files.
    """
    rule, hint = "be new, or hold this screening", "Choose a new folder."
    if not (folder / RECORD).is_file():
        # Hidden files are what a run left that was killed while it wrote its first one.
        if folder.exists() and not folder.is_dir():
            raise InvalidArgumentError.of("out", "be a folder, or not there yet", str(folder), hint)
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InvalidArgumentError.of("out", rule, "other files", hint)
        return
    record = read_record(folder)
    if record is None:  # damaged; what is whole is in its shards, and `begin_screening` asks them
        return
    found, had = record["config"], record["max_rows"]
    if max_rows is not None and (had is None or had > max_rows):
        rule = f"be at least that of the screening in {str(folder)!r}, {had}"
        raise InvalidArgumentError.of("max_rows", rule, max_rows, hint)
    # What follows from the others comes last: the message may be cut.
    known = json.loads(json.dumps({key: config[key] for key in sorted(config, key=("vectors", "norms").__contains__)}))
    changes = list(_list_changes(found, known, ""))
    if changes:
        raise InvalidArgumentError.of("out", rule, f"one with {', '.join(changes)}", hint)


def _list_changes(found: Any, known: Any, name: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(known, dict):
        for key, value in known.items():
            yield from _list_changes(found.get(key), value, f"{name}.{key}".lstrip("."))
    elif found != known:
        yield f"{name} {found}, not {known}"


def begin_screening(folder: Path, plan: ScreenPlan) -> None:
    """Claim a folder, or find that it is this same screening's.

    Raises:
        InvalidArgumentError: It holds another screening, one of more rows, or other files.
    """
    check_out(folder, plan.config, plan.max_rows)
    if (folder / RECORD).is_file() and read_record(folder) is None:
        marks = filter(None, map(read_mark, list_shards(folder)))
        if any(not mark.endswith(f" {plan.digest}") for mark in marks):
            rule, hint = "be new, or hold this screening", "Choose a new folder."
            raise InvalidArgumentError.of("out", rule, f"another screening, with a damaged {RECORD}", hint)
    write_record(folder, {"config": plan.config, "max_rows": plan.max_rows})  # without counts: not finished


def count_with_further(rows: Rows, turn: Turn) -> int:
    """Return how many conversations have more answers than the one that is read; none where all are."""
    if turn == "all":
        return 0
    good = [row for row in rows if isinstance(row, Conversation)]
    return sum(sum(message["role"] == "assistant" for message in row.messages) > 1 for row in good)


def finish_screening(folder: Path, plan: ScreenPlan, marks: Sequence[str], n_with_further: int) -> None:
    """Check that every shard is there and count what became of the rows, which marks the screening as finished.

    Args:
        folder: The screening's.
        plan: As it was made.
        marks: Of each shard's rows.
        n_with_further: Conversations with more answers than the one that was read.

    Raises:
        FileFormatError: A shard is missing or of other rows, as where another process writes into the same folder.
        InvalidArgumentError: Not one row was scored.
    """
    counts: Counter[str] = Counter()
    n_cut = n_without_base = n_with_controls = n_unfinished = 0
    delta = f"{next(iter(plan.units))}.delta"
    checksums = []
    for index, mark in enumerate(marks):
        path = shard_path(folder, index)
        table, checksum = read_shard(path, mark), find_checksum(path)
        if table is None or checksum is None:
            rule, hint = f"hold {path.name}, whole", "Run the same command again."
            raise FileFormatError.of("out", rule, "none, or one of other rows", hint)
        checksums.append(checksum)
        columns = table.select(["status", "is_cut", "controls", "detail", delta]).to_pydict()
        n_unfinished += columns["detail"].count(_UNFINISHED)
        counts.update(columns["status"])
        n_cut += sum(filter(None, columns["is_cut"]))
        n_with_controls += sum(map(bool, columns["controls"]))
        n_without_base += sum(s == SCORED and d is None for s, d in zip(columns["status"], columns[delta], strict=True))
    if not counts[SCORED]:
        if len(list_shards(folder)) == len(marks):  # else it holds what other data scored
            _discard(folder)  # the same folder can take what is meant
        raise _refuse_data(counts, "data")
    for stale in list_shards(folder)[len(marks) :]:  # of longer data that this folder once held
        stale.unlink()
    content = {"counts": dict(counts.most_common()), "n_cut": n_cut, "n_without_base": n_without_base}
    content["n_with_controls"] = n_with_controls
    content |= {"n_unfinished": n_unfinished} if n_unfinished else {}
    content |= {"n_with_further": n_with_further} if n_with_further else {}
    head = {"config": plan.config, "max_rows": plan.max_rows, "shards": checksums}
    write_record(folder, head | content)


def _discard(folder: Path) -> None:
    """Remove a screening that scored nothing, and only what it wrote."""
    for path in [*list_shards(folder), folder / RECORD]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or not empty
        shard_path(folder, 0).parent.rmdir()


def check_same_data(folder: Path, mark: str) -> None:
    """Refuse to write the scores of other data over finished ones.

    Args:
        folder: The screening's.
        mark: Of the first shard's rows, as they come now.

    Raises:
        InvalidArgumentError: The first finished shard is whole and of other rows.
    """
    if read_mark(shard_path(folder, 0)) not in (None, mark):
        hint = "Choose a new folder."
        raise InvalidArgumentError.of("out", "hold a screening of these data", "of other data", hint)


def make_shard(model: HookedModel, rows: Rows, plan: ScreenPlan, advance: Advance = count_nothing) -> pa.Table:
    """Score a shard's rows: a line for each, in order."""
    good = [row for row in rows if isinstance(row, Conversation)]
    advance(len(rows) - len(good))
    scored = iter(score_rows(model, good, plan.units, plan.settings, advance))
    traits = list(plan.units)
    lines = [_to_line(next(scored) if isinstance(row, Conversation) else row, traits) for row in rows]
    return pa.Table.from_pylist(lines, _make_schema(traits, plan.settings.turn))


def digest_rows(rows: Rows) -> str:
    """Return what tells these rows from others."""
    content = json.dumps([asdict(row) for row in rows], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def mark_shard(rows: Rows, plan: ScreenPlan) -> str:
    """Return what tells a shard from others: its rows, and what is done to them."""
    return f"{digest_rows(rows)} {plan.digest}"


def split_into_shards(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield the rows in lists of ``size``; the last may be shorter."""
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _to_line(row: ScoredRow | BadRow, traits: list[str]) -> dict[str, Any]:
    if isinstance(row, BadRow):
        return {"index": row.index, "place": row.place, "status": row.reason, "detail": row.detail}
    values = {
        "index": row.conversation.index,
        "place": row.conversation.place,
        "status": SCORED,
        "controls": " ".join(row.controls),
        "detail": _UNFINISHED if row.is_base_unfinished else None,
    }
    values |= _read_answer(row, traits) | {f"{trait}.answer": number for trait, number in row.highest.items()}
    return values | {"answers": [_read_answer(one, traits) for one in row.answers]}


def _read_answer(row: ScoredRow, traits: list[str]) -> dict[str, Any]:
    """Return what is written of an answer."""
    values: dict[str, Any] = {
        "question": row.question,
        "response": row.response,
        "base_response": row.base_response,
        "n_prompt_tokens": row.n_prompt_tokens,
        "n_response_tokens": row.n_response_tokens,
        "is_cut": row.is_cut,
    }
    for trait in traits:
        values |= {f"{trait}.raw": row.raw[trait], f"{trait}.base": row.base[trait]}
        values |= {f"{trait}.prompt": row.prompt[trait], f"{trait}.delta": row.find_delta(trait)}
    return values


def _make_schema(traits: list[str], turn: Turn) -> pa.Schema:
    texts = ("place", "status", "detail", "question", "response", "base_response", "controls")
    numbers = [f"{trait}.{name}" for trait in traits for name in ("raw", "base", "prompt", "delta")]
    fields = {"index": pa.int64()} | dict.fromkeys(texts, pa.large_string())
    fields |= {"n_prompt_tokens": pa.int32(), "n_response_tokens": pa.int32(), "is_cut": pa.bool_()}
    fields |= dict.fromkeys(numbers, pa.float32())
    if turn == "all":
        of_a_row = ("index", "place", "status", "detail", "controls")
        answer = pa.struct([(name, kind) for name, kind in fields.items() if name not in of_a_row])
        fields |= {f"{trait}.answer": pa.int32() for trait in traits} | {"answers": pa.list_(answer)}
    return pa.schema(list(fields.items()))
