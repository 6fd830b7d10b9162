"""The examination: every check in turn, each in words that say what to do."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persona_lens.checking import checked
from persona_lens.diagnosis.context import check_context
from persona_lens.diagnosis.finding import Diagnosis, Finding
from persona_lens.diagnosis.finite import check_finite
from persona_lens.diagnosis.hook_points import check_hooks, check_steering
from persona_lens.diagnosis.layers import check_layers
from persona_lens.diagnosis.parity import check_cache, check_padding
from persona_lens.diagnosis.reference import Reference, read_reference
from persona_lens.diagnosis.spans import check_spans
from persona_lens.diagnosis.subject import Subject, choose_prompts
from persona_lens.diagnosis.template import check_bos, check_stop_tokens, check_system_prompt, check_template
from persona_lens.errors import PersonaLensError, PersonaLensWarning
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model, load_model
from persona_lens.progress_bars import show_progress

_MAX_QUOTED = 300  # characters of an error


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: What its finding is called.
        examine: The check.
        needs: Names of earlier checks without whose success it says nothing.
    """

    name: str
    examine: Callable[[Subject], Finding]
    needs: tuple[str, ...] = ()


_NUMBERS = ("hooks", "finite")
CHECKS = (
    Check("chat template", check_template),
    Check("system prompt", check_system_prompt, ("chat template",)),
    Check("BOS", check_bos, ("chat template",)),
    Check("stop tokens", check_stop_tokens, ("chat template",)),
    Check("spans", check_spans, ("chat template",)),
    Check("context length", check_context),
    Check("hooks", check_hooks),
    Check("finite", check_finite, ("hooks",)),
    Check("padding", check_padding, _NUMBERS),
    Check("cache", check_cache, _NUMBERS),
    Check("layers", check_layers, _NUMBERS),
    Check("steering", check_steering, _NUMBERS),
)
"""Every check, in order: what the text becomes, then what the model makes of it."""


@checked
def doctor(model: str | Path | HookedModel, *, reference: str | Path | None = None) -> Diagnosis:
    """Examine whether a model runs as it should, and say of each check what was seen and what to do.

    Looked at are the chat template and the system prompt, BOS, stop tokens, the spans of responses in five
    conversations, the context length; hooks at every layer; finite numbers; padding and the cache, which may change
    nothing; every layer against Hugging Face's model; steering, which must add what it is told to. Nothing is drawn at
    random, and nothing is left on the model.

    Args:
        model: As for :func:`persona_lens.load_model`, or a loaded model without hooks.
        reference: From where Hugging Face's model is loaded to compare the layers with. None takes the one that a
            TransformerBridge wraps; for a HookedTransformer that from which the model was loaded, so that memory holds
            the weights twice for a moment.

    Raises:
        ModelNotFoundError: No such model, or no such reference.
        HooksPresentError: The model carries hooks.
        ModelBusyError: The model does something else.

    Example:
        >>> import persona_lens as pl
        >>> diagnosis = pl.doctor("smollm2-135m-instruct")  # doctest: +SKIP
        >>> diagnosis.passed  # doctest: +SKIP
        True
    """
    if isinstance(model, str | Path):
        model = load_model(model)
    check_unsteered(model)
    info = describe_model(model)
    start = time.perf_counter()
    with warnings.catch_warnings(), show_progress("examining (checks)", len(CHECKS)) as advance:
        # Merged system prompts and texts that spell control tokens are what is tried.
        warnings.simplefilter("ignore", PersonaLensWarning)
        prompts = choose_prompts(model)
        subject = Subject(model, prompts, *_find_reference(model, prompts[-1], reference))
        findings: list[Finding] = []
        for check in CHECKS:
            findings.append(_examine(check, subject, findings))
            advance(1)
    seconds = time.perf_counter() - start
    return Diagnosis(info.name, info.backend, info.dtype, info.fingerprint, seconds, tuple(findings))


def _find_reference(
    model: HookedModel, tokens: tuple[int, ...], source: str | Path | None
) -> tuple[Reference | None, str]:
    """Return what Hugging Face's model makes of a text; None and why where that breaks down."""
    try:
        return read_reference(model, tokens, None if source is None else str(source))
    except Exception as error:  # whatever a model raises that is not as it should be
        if source is not None and isinstance(error, PersonaLensError):
            raise
        return None, f"Hugging Face's model broke down: {_quote(error)}"


def _quote(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_QUOTED]}"


def _examine(check: Check, subject: Subject, earlier: list[Finding]) -> Finding:
    """Run a check; one that breaks down has found something too."""
    missing = [one.name for one in earlier if one.name in check.needs and not one.passed]
    if missing:
        return Finding(check.name, None, f"It needs {' and '.join(missing)}.", "Cure that first.")
    try:
        return check.examine(subject)
    except Exception as error:  # whatever a model, a tokenizer or a template raises that is not as it should be
        cure = "The check broke down at this; see whether another backend runs it."
        return Finding(check.name, False, _quote(error), cure)
