"""Writes what the doctor's page shows: three models examined, and one that is broken on purpose.

`python -m tests.diagnosis.page`
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import persona_lens as pl
from tests.diagnosis.broken import BREAKS
from tests.tiny import make_hf_model, make_tokenizer_without_system_role, save_tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "doctor.md"


def render_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    shown = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *shown])


def render_diagnosis(title: str, found: pl.diagnosis.Diagnosis) -> str:
    rows = [(one.name, one.verdict, one.seen) for one in found.findings]
    return f"### {title}\n\n{found.summary}.\n\n{render_rows(('check', '', 'seen'), rows)}"


def examine_three(folder: Path) -> str:
    """The embedded model, and two tiny random ones of other architectures."""
    gemma = folder / "tiny-gemma2"
    make_hf_model("gemma2").save_pretrained(gemma)
    make_tokenizer_without_system_role().save_pretrained(gemma)
    qwen = folder / "tiny-qwen3"
    save_tiny(qwen, "qwen3")
    models = {
        "The embedded model": pl.load_model(dtype="float32", device="cpu"),
        "A tiny random Gemma 2, whose template refuses a system role": pl.load_model(
            gemma, dtype="float32", device="cpu"
        ),
        "A tiny random Qwen 3 in bfloat16, through the bridge": pl.load_model(
            qwen, backend="bridge", dtype="bfloat16", device="cpu"
        ),
    }
    return "\n\n".join(render_diagnosis(title, pl.doctor(model)) for title, model in models.items())


def examine_broken(folder: Path) -> str:
    """One model, one thing broken at a time."""
    whole = save_tiny(folder / "tiny-llama", "llama")
    rows = []
    for broken in BREAKS:
        model = pl.load_model(whole, backend="hooked", dtype="float32", device="cpu")
        broken.do(model)
        (found,) = pl.doctor(model).failed
        rows.append((broken.what, found.name, found.seen, found.cure))
    return render_rows(("broken", "found by", "seen", "cure"), rows)


def put(page: str, name: str, content: str) -> str:
    """Return the page with what stands between two marks replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{content}\n{end}", page, flags=re.DOTALL)


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        page = put(PAGE.read_text(encoding="utf-8"), "broken", examine_broken(Path(folder)))
        PAGE.write_text(put(page, "models", examine_three(Path(folder))), encoding="utf-8")


if __name__ == "__main__":
    main()
