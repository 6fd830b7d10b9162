"""What validation found of the judges that a figure's scores rest on, for its title."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import plotly.graph_objects as go

from persona_lens.judges.validation import JudgeValidation, Verdict
from persona_lens.plots.style import make_room_for_title
from persona_lens.records import Record, read_headed

NOT_VALIDATED = "not validated"


@dataclass(frozen=True)
class _Validations(Record):
    """What experiments/judge_validation.py writes."""

    config: dict[str, Any]
    validations: tuple[JudgeValidation, ...]


def find_verdicts(folder: Path, model: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return the verdicts that judge_validation.py left of a model's judges, by judge and trait.

    Args:
        folder: Where the results are; the folder above it is looked at too.
        model: The model that was measured, as its results describe it; another one's verdicts are none of its.
    """
    found: dict[tuple[str, str], str] = {}
    for place in (folder.parent, folder):
        path = place / "judge_validation.json"
        if path.exists():
            table = read_headed(json.loads(path.read_text(encoding="utf-8")), _Validations, "JudgeValidations", 1)
            if table.config["model"]["fingerprint"] == model["fingerprint"]:
                found |= {(one.judge, one.trait): one.verdict for one in table.validations}
    return found


def say_verdicts(figure: go.Figure, judges: Mapping[str, str], verdicts: Mapping[tuple[str, str], str]) -> None:
    """Begin a figure's title with the traits for which its judge is not valid; a valid judge needs no word.

    Args:
        figure: Its title is changed.
        judges: By trait, the judge that scored it; a validated judge's name says what was found of it.
        verdicts: From :func:`find_verdicts`.
    """
    traits: dict[str, list[str]] = {}
    for trait, judge in judges.items():
        said = next((one for one in get_args(Verdict) if judge.endswith(f", {one} for {trait}")), NOT_VALIDATED)
        traits.setdefault(verdicts.get((judge, trait), said), []).append(trait)
    doubts = [f"{verdict} for {', '.join(own)}" for verdict, own in traits.items() if verdict != "valid"]
    if doubts:
        figure.update_layout(title_text=f"Judge {html.escape('; '.join(doubts))} · {figure.layout.title.text}")
        make_room_for_title(figure)
