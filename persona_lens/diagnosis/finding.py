"""What an examination finds: one finding a check, and all of them as a table."""

from __future__ import annotations

from dataclasses import dataclass

from persona_lens.checking import checked
from persona_lens.records import Record, format_table

_VERDICTS = {True: "passed", False: "FAILED", None: "not checked"}


@checked
@dataclass(frozen=True)
class Finding(Record):
    """What one check found.

    Args:
        name: The check's.
        passed: Whether the model is as it should be there; None where that could not be told, and ``seen`` says why.
        seen: What was seen, with its numbers.
        cure: What to do about it; empty where there is nothing to do.

    Example:
        >>> Finding("BOS", False, "BOS stands 2 times at the start.", "Take one out of the template.").verdict
        'FAILED'
    """

    name: str
    passed: bool | None
    seen: str
    cure: str = ""

    @property
    def verdict(self) -> str:
        """``passed``, ``FAILED`` or ``not checked``."""
        return _VERDICTS[self.passed]


@checked
@dataclass(frozen=True)
class Diagnosis(Record):
    """A model's findings, in the order of the checks.

    Args:
        model: The model's name.
        backend: ``hooked`` or ``bridge``.
        dtype: Element type of the weights.
        fingerprint: As in :class:`persona_lens.models.ModelInfo`.
        seconds: How long it took, loading left out.
        findings: One a check.

    Example:
        >>> found = Finding("BOS", True, "Once, at the start.")
        >>> print(Diagnosis("tiny", "hooked", "float32", "0123", 1.0, (found,)))
        tiny (hooked, float32): 1 check passed
        passed       BOS  Once, at the start.
    """

    model: str
    backend: str
    dtype: str
    fingerprint: str
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; one that could not be made does not fail."""
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that something is wrong."""
        return tuple(one for one in self.findings if one.passed is False)

    @property
    def summary(self) -> str:
        """Which model, and how many checks came out how."""
        counts = {verdict: sum(one.verdict == verdict for one in self.findings) for verdict in _VERDICTS.values()}
        shown = [f"{n} {verdict}" for verdict, n in counts.items() if n]
        noun = "check" if len(self.findings) == 1 else "checks"
        first, *rest = shown or ["0 passed"]
        number, _, verdict = first.partition(" ")
        return f"{self.model} ({self.backend}, {self.dtype}): {', '.join([f'{number} {noun} {verdict}', *rest])}"

    def __str__(self) -> str:
        verdict_width = max(map(len, _VERDICTS.values()))
        name_width = max((len(one.name) for one in self.findings), default=0)
        indent = " " * (verdict_width + name_width + 4)
        lines = [self.summary]
        for one in self.findings:
            lines.append(f"{one.verdict:{verdict_width}}  {one.name:{name_width}}  {one.seen}")
            if one.cure:
                lines.append(f"{indent}-> {one.cure}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [(one.name, one.verdict, one.seen, one.cure) for one in self.findings]
        return format_table(self.summary, rows, head=("check", "", "seen", "cure"))
