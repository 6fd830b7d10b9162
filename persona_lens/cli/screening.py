"""``persona-lens screen``: training data screened, for people who will not write Python."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from persona_lens.cli.arguments import Screen
from persona_lens.cli.chat_view import make_printable
from persona_lens.cli.choosing import find_vector, load, read_screened
from persona_lens.cli.terminal import print_json, print_nothing
from persona_lens.conversations import UNREAD, ReadLimits, read_conversations, resolve_source
from persona_lens.errors import InvalidArgumentError
from persona_lens.files import write_bytes_atomically
from persona_lens.judges.default import default_judge
from persona_lens.models.hooks.sites import check_layer
from persona_lens.plots.screening import report_screening
from persona_lens.screening.files import SCORED
from persona_lens.screening.reasons import REASONS
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screen import screen
from persona_lens.screening.screening import Screening
from persona_lens.screening.shards import check_data, check_out
from persona_lens.screening.splitting import check_outputs, split_rows
from persona_lens.traits.library import list_traits
from persona_lens.traits.trait import Trait
from persona_lens.vectors.persona_vector import PersonaVector

ABOVE_LIMIT, TOO_MANY_BAD = 3, 4
_KEPT, _HELD, _REPORT = "kept.jsonl", "held.jsonl", "report.html"
_SCORES, _CLEAN = "scores", "clean"
_N_BAD = 20  # rows that could not be scored, as in the report
_N_SHOWN = 100  # characters of one


def run(arguments: Screen) -> int:
    """Screen, split, report; return the exit status."""
    if not arguments.trait:
        print(
            f"--trait is missing: one of {', '.join(list_traits())}, a file, or a name in --vectors.", file=sys.stderr
        )
        return 2
    folder = arguments.vectors or arguments.out / "vectors"
    traits = dict(read_screened(name, folder) for name in arguments.trait)
    if arguments.judge:
        check_judged(traits)
    data, settings = check_before_work(arguments, list(traits))
    model = load(arguments)
    layer = check_layer(model.cfg.n_layers // 2 if arguments.layer is None else arguments.layer, model.cfg.n_layers)
    say = print_nothing if arguments.json else print
    vectors = {
        name: one if isinstance(one, PersonaVector) else find_vector(model, one, folder, say)
        for name, one in traits.items()
    }

    def screen_into(data: Any, name: str) -> Screening:
        return screen(
            model, data, vectors, arguments.out / name, layers=dict.fromkeys(vectors, layer), settings=settings,
            max_rows=arguments.max_rows,
        )  # fmt: skip

    thresholds: dict[str, float] = {}
    held: dict[str, int] = {}
    clean = None
    if arguments.clean is not None:
        clean = screen_into(arguments.clean, _CLEAN)
        thresholds = {trait: clean.threshold(trait, arguments.quantile) for trait in vectors}
    found = screen_into(data, _SCORES)
    judges = {
        name: default_judge(model, one) for name, one in traits.items() if arguments.judge and isinstance(one, Trait)
    }
    if thresholds or judges:
        split = split_rows(found, data, thresholds, arguments.out / _KEPT, arguments.out / _HELD, judges=judges)
        held = split.held
        say(f"kept {split.kept} rows ({split.kept_cut} of them longer than was screened), held back: {held}")
    report = arguments.out / _REPORT
    write_bytes_atomically(report, report_screening(found, thresholds, held).encode())
    say("rows: " + ", ".join(f"{number} {status}" for status, number in found.counts.items()))
    for line in list_bad(found):
        say(line)
    if found.n_with_controls:
        say(f"{found.n_with_controls} rows spell control tokens of the model; they were read as text")
    for line in list_unseen(found, settings):
        say(line)
    measured, above = {}, []
    for trait in vectors:
        interval, length = found.measure(trait), found.config["norms"][trait]
        say(f"{trait}: ΔP {interval} at layer {layer}, {interval.estimate / length:.3f} lengths of the vector")
        measured[trait] = [value / length for value in (interval.estimate, interval.low, interval.high)]
        if arguments.fail_above is not None and not interval.low / length <= arguments.fail_above:  # NaN fails too
            above.append(trait)
    say(f"read {report}")
    status = decide(arguments, found, clean, above)
    if arguments.json:
        first = islice(found.bad_rows, _N_BAD)
        print_json(
            {
                "rows": dict(found.counts), "bad_rows": found.n_bad,
                "first_bad_rows": [{"place": one.place, "reason": one.reason, "detail": one.detail} for one in first],
                "read_to_the_end": found.is_whole,
                "rows_with_control_tokens": found.n_with_controls, "rows_with_further_answers": found.n_with_further,
                "answers_cut": found.n_cut,
                "layer": layer, "held": held, "report": str(report), "exit_status": status,
                "projection_difference_in_lengths": measured,
            }
        )  # fmt: skip
    return status


def check_judged(traits: Mapping[str, Trait | PersonaVector]) -> None:
    """Refuse to judge by a vector alone.

    Raises:
        InvalidArgumentError: Of one trait there is no more than that.
    """
    for name, one in traits.items():
        if isinstance(one, PersonaVector):
            hint = "A vector alone has no rubric: give the trait's .json file, or leave --judge out."
            raise InvalidArgumentError.of("--trait", "be a trait where --judge is given", name, hint)


def list_bad(found: Screening) -> Iterator[str]:
    """Show the first row of each reason for which rows were not scored."""
    if found.counts.keys() == {SCORED}:
        return
    told: set[str] = set()
    for row in found.bad_rows:
        if row.reason not in told:
            told.add(row.reason)
            got = make_printable(" ".join(row.detail.split()))[:_N_SHOWN]
            yield f"  {row.place}: {row.reason} ({REASONS.get(row.reason, '')}). Got {got}"
    where = f"persona_lens.screening.Screening.load({str(found.folder)!r})"
    yield f"  the first {_N_BAD} stand in {_REPORT}, a thousand in {where}.bad_rows"


def list_unseen(found: Screening, settings: ScreenSettings) -> Iterator[str]:
    """Say what of the conversations was not looked at."""
    if found.n_with_further:
        yield (
            f"{found.n_with_further} rows have several answers, of which the {settings.turn} one alone was looked at; "
            "--turn all reads them all"
        )
    if found.n_cut:
        limit = settings.max_response_tokens
        what = "rows have answers that were" if settings.turn == "all" else "answers were"
        yield f"{found.n_cut} {what} looked at up to {limit} tokens and go on; --max-response-tokens reads more"


def check_before_work(arguments: Screen, traits: Sequence[str]) -> tuple[Any, ScreenSettings]:
    """Check numbers and folders, and look into the data, before minutes of work.

    Raises:
        InvalidArgumentError: A number out of range; an output that would be written over what is read; a folder that
            holds another screening; data without a conversation.
    """
    if not 0 < arguments.quantile < 1:
        raise InvalidArgumentError.of("--quantile", "be in (0, 1)", arguments.quantile)
    if arguments.max_rows is not None and arguments.max_rows < 1:
        raise InvalidArgumentError.of("--max-rows", "be at least 1", arguments.max_rows)
    if arguments.max_bad is not None and not 0 <= arguments.max_bad <= 1:
        raise InvalidArgumentError.of("--max-bad", "be in [0, 1]", arguments.max_bad)
    if arguments.fail_above is not None and not math.isfinite(arguments.fail_above):
        raise InvalidArgumentError.of("--fail-above", "be finite", arguments.fail_above)
    settings = ScreenSettings(
        turn=arguments.turn, base=arguments.base, max_prompt_tokens=arguments.max_prompt_tokens,
        max_response_tokens=arguments.max_response_tokens,
        limits=ReadLimits(arguments.max_row_bytes, arguments.max_depth, arguments.max_ratio),
    )  # fmt: skip
    for name, folder in (("--out", arguments.out), ("--vectors", arguments.vectors)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InvalidArgumentError.of(name, "be a folder, or not there yet", str(folder))
    data = resolve_source(arguments.data, split=arguments.split, subset=arguments.subset)
    known: dict[str, Any] = {"traits": list(traits), "settings": settings.to_json()}
    if arguments.layer is not None:
        known["layers"] = dict.fromkeys(traits, arguments.layer)
    outputs = {f"--out {name}": arguments.out / name for name in (_KEPT, _HELD, _REPORT)}
    for name, source, part in (("DATA", data, _SCORES), ("--clean", arguments.clean, _CLEAN)):
        if source is not None:
            check_outputs(outputs, source)
            check_out(arguments.out / part, known, arguments.max_rows)
            check_data(islice(read_conversations(source, limits=settings.limits), arguments.max_rows), name)
    return data, settings


def decide(arguments: Screen, found: Screening, clean: Screening | None, above: Sequence[str]) -> int:
    """Return the exit status, and say on standard error why it is not 0."""
    status = 0
    for name, screening in (("the data", found), ("--clean", clean)):
        if screening is not None and not screening.is_whole and not arguments.allow_unread:
            why = ", ".join(UNREAD & screening.counts.keys())
            print(f"{name} could not be read to the end ({why}): nobody knows how many rows are missing. Get the file "
                  "again, or pass --allow-unread", file=sys.stderr)  # fmt: skip
            status = TOO_MANY_BAD
    bad = found.n_bad / sum(found.counts.values())
    most = (1.0 if arguments.fail_above is None else 0.0) if arguments.max_bad is None else arguments.max_bad
    if bad > most:
        report = arguments.out / _REPORT
        print(f"{found.n_bad} rows ({100 * bad:.1f} %) have no projection difference, and --max-bad allows "
              f"{100 * most:g} %; see {report}", file=sys.stderr)  # fmt: skip
        status = TOO_MANY_BAD
    if above:
        limit = f"{arguments.fail_above:g} lengths of the vector"
        print(f"surely above {limit}, or not measurable: {', '.join(above)}", file=sys.stderr)
    return status or (ABOVE_LIMIT if above else 0)
