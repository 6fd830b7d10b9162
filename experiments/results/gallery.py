"""Every figure with its finding, for the page that shows them all."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import plotly.graph_objects as go

from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.verdicts import find_verdicts, say_verdicts

PAGES = Path(__file__).resolve().parents[2] / "docs" / "results"
# What is shown together, with its page; figures whose name begins so belong there. The first that fits counts.
SECTIONS = {
    "Judges": ("judges.md", ("judge_validation", "judge_agreement")),
    "Steering": ("evidence.md", ("steering_evidence", "steering_away", "blind_reading")),
    "Layer sweeps": ("sweeps.md", ("layer_sweep", "vector_stability")),
    "Quality of vectors": ("quality.md", ("vector_quality",)),
    "What is in a vector": ("contents.md", ("sae_features",)),
    "Fine-tuning": (
        "finetuning.md",
        (
            "finetuning_shift",
            "projection_difference",
            "mitigation",
            "control_model",
            "moving_vectors",
            "hidden_signal",
            "inoculation",
        ),
    ),
    "Good traits": ("positive.md", ("positive_traits",)),
    "Ways compared": ("ways.md", ("ways_to_steer", "heads")),
    "Ways of steering": ("steering.md", ("steering_modes",)),
    "Monitoring": ("monitoring.md", ("monitoring", "sample_separation", "detection", "alarms")),
    "Persona space": ("space.md", ("persona_space",)),
    "Screening": ("screening.md", ("attributions", "real_conversations")),
    "Drift over turns": ("drift.md", ("drift",)),
    "Told how it read": ("reflection.md", ("reflection",)),
    "Truth and invention": ("truth.md", ("truth", "known_entities")),
    "Earlier, by a judge that is not valid": ("earlier.md", ("",)),
}


def gallery_to_markdown(figures: Path, load: Callable[[Path], Result]) -> str:
    """Show every figure of a folder's results, a section a kind, with the finding that is its title.

    Args:
        figures: Where the results are.
        load: Loads one.
    """
    found: dict[str, list[str]] = {title: [] for title in SECTIONS}
    verdicts: dict[str, dict[tuple[str, str], str]] = {}
    for path in sorted(figures.glob("*.json")):
        result = load(path)
        model = result.config["model"]
        if model["fingerprint"] not in verdicts:
            verdicts[model["fingerprint"]] = find_verdicts(figures, model)
        section = next(title for title, (_, starts) in SECTIONS.items() if path.stem.startswith(starts))
        for ending, figure in result.list_figures().items():
            if (figures / f"{path.stem}{ending}.png").exists():
                found[section].append(
                    _show(f"{path.stem}{ending}", read_finding(figure, result, verdicts[model["fingerprint"]]))
                )
    lines = []
    for title, shown in found.items():
        page, _ = SECTIONS[title]
        if shown:
            lines += [f"## {title}", "", f"What was done: [{_read_title(page)}](results/{page}).", ""]
            lines += shown
    return "\n".join(lines)


def read_finding(figure: go.Figure, result: Result, verdicts: Mapping[tuple[str, str], str]) -> str:
    """Return a figure's title without what stands below it, with what its judges' verdicts add."""
    say_verdicts(figure, result.judges, verdicts)
    title = figure.layout.title.text.partition("<br><sup>")[0]
    return html.unescape(re.sub(r"<[^>]+>", "", title.replace("<br>", " ")))


def _read_title(page: str) -> str:
    """Return the title of a page of results."""
    with (PAGES / page).open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").strip()


def _show(name: str, finding: str) -> str:
    """Write one figure: its finding and its picture."""
    picture = f"[![{name}](../figures/{name}.png)](../figures/{name}.png)"
    return f"{finding[0].upper()}{finding[1:]} (`{name}`)\n\n{picture}\n"
