"""Every exception and warning that persona_lens raises on purpose.

```text
PersonaLensError
├── InvalidArgumentError      (ValueError)         an argument breaks a stated rule
│   └── LayerOutOfRangeError  (IndexError)         a layer that the model does not have
├── ArgumentTypeError         (TypeError)          an argument of another type than its annotation says
├── ModelNotFoundError        (FileNotFoundError)  no such model, or no network to fetch it
├── UnsupportedModelError     (ValueError)         an architecture that this path cannot run faithfully
├── ModelMismatchError        (ValueError)         a vector or judge made on another model
├── ChatTemplateError         (ValueError)         a conversation that the chat template cannot render
├── ContextLengthError        (ValueError)         more tokens than the model's context holds
├── TraitFormatError          (ValueError)         a trait file with a missing or wrong key
├── FileFormatError           (ValueError)         a vector, shard or result file that is not what it should be
├── ApiError                  (RuntimeError)       an API or the network that did not answer as it should
├── HookNeverFiredError       (RuntimeError)       an intervention that no forward pass reached
├── HooksPresentError         (RuntimeError)       hooks on the model where none may be
├── ModelBusyError            (RuntimeError)       a model that does something else, in this thread or another
└── NonFiniteError            (FloatingPointError) a model whose numbers overflow or are no numbers

PersonaLensWarning            (UserWarning)
├── SystemRoleMergedWarning   a template without system role; the system prompt went into the user turn
├── ControlTextWarning        a text that spells a control token, which was read as text
├── DatedTemplateWarning      a chat template that writes today's date, which was fixed and recorded
├── UnfinishedThoughtWarning  responses that are thoughts without an end, and so without an answer
├── UnstableVectorWarning     a vector whose direction depends on which questions were asked
└── ShortTrainingWarning      a fine-tuning run that ends while the learning rate is still rising
```

Each class also subclasses the built-in exception it refines, so ``except ValueError`` works as expected.
Messages have one form: the parameter, the rule, what came, what to do.
"""

from __future__ import annotations


class PersonaLensError(Exception):
    """Base of every exception that persona_lens raises on purpose."""

    @classmethod
    def of(cls, parameter: str, rule: str, got: object, hint: str = "") -> PersonaLensError:
        """Return the exception with the one message form, see `describe_violation`."""
        return cls(describe_violation(parameter, rule, got, hint))


class InvalidArgumentError(PersonaLensError, ValueError):
    """An argument breaks a stated rule."""


class ArgumentTypeError(PersonaLensError, TypeError):
    """An argument of another type than its annotation says."""


class LayerOutOfRangeError(InvalidArgumentError, IndexError):
    """A layer that the model does not have."""


class ModelNotFoundError(PersonaLensError, FileNotFoundError):
    """No model of that name or path can be found."""


class UnsupportedModelError(PersonaLensError, ValueError):
    """An architecture that the requested path cannot run faithfully."""


class ModelMismatchError(PersonaLensError, ValueError):
    """A vector or judge that was made on another model."""


class ChatTemplateError(PersonaLensError, ValueError):
    """A conversation that the model's chat template cannot render."""


class ContextLengthError(PersonaLensError, ValueError):
    """More tokens than the model's context holds."""


class TraitFormatError(PersonaLensError, ValueError):
    """A trait file with a missing or malformed key."""


class FileFormatError(PersonaLensError, ValueError):
    """A file that is truncated, corrupted or of another kind."""


class ApiError(PersonaLensError, RuntimeError):
    """An API, or the network on the way to it, that did not answer as it should."""


class HookNeverFiredError(PersonaLensError, RuntimeError):
    """An intervention or recorder whose hook no forward pass reached."""


class HooksPresentError(PersonaLensError, RuntimeError):
    """Hooks on the model where a result would silently depend on them."""


class ModelBusyError(PersonaLensError, RuntimeError):
    """A model that does something else, in this thread or another, which the call would mix with."""


class NonFiniteError(PersonaLensError, FloatingPointError):
    """A model's activations, logits or losses are infinite or no numbers."""


class PersonaLensWarning(UserWarning):
    """Base of every warning that persona_lens emits."""


class SystemRoleMergedWarning(PersonaLensWarning):
    """The chat template has no system role; the system prompt was put before the user's first turn."""


class ControlTextWarning(PersonaLensWarning):
    """A text spells one of the tokenizer's control tokens; it was read as ordinary text."""


class DatedTemplateWarning(PersonaLensWarning):
    """A chat template writes today's date into prompts, which was fixed for a model and is recorded."""


class UnfinishedThoughtWarning(PersonaLensWarning):
    """Responses are thoughts that do not end within the tokens that they may have; they hold no answer."""


class UnstableVectorWarning(PersonaLensWarning):
    """Halves of the questions that a vector was found from give other directions, at every layer."""


class ShortTrainingWarning(PersonaLensWarning):
    """A fine-tuning run ends within its warm-up, so that it changes the model little."""


def describe_violation(parameter: str, rule: str, got: object, hint: str = "") -> str:
    """Return the one message form: the parameter, the rule, what came, what to do.

    Args:
        parameter: Name of the argument, as the caller spelled it.
        rule: What must hold, continuing "`parameter` must ...".
        got: What came; shown with ``repr``, cut at 200 characters. A tensor or array that takes several lines is named
            by its type and shape, a model by its class.
        hint: What to do about it; a full sentence.

    Returns:
        One line, e.g. ``"`layer` must be in [0, 30). Got 31. The model has 30 layers."``

    Example:
        >>> describe_violation("layer", "be in [0, 30)", 31, "The model has 30 layers.")
        '`layer` must be in [0, 30). Got 31. The model has 30 layers.'
    """
    shown = _show(got)
    if len(shown) > 200:
        shown = shown[:197] + "..."
    return f"`{parameter}` must {rule}. Got {shown}. {hint}".rstrip()


def _show(got: object) -> str:
    if hasattr(got, "named_parameters") and not isinstance(got, type):  # a model, whose layers would be listed
        return f"a {type(got).__name__}"
    try:
        shown = repr(got)
    except RecursionError:
        return f"a {type(got).__name__} nested too deep to show"
    shape, dtype = getattr(got, "shape", None), getattr(got, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None and "\n" in shown:
        return f"a {str(dtype).removeprefix('torch.')} {type(got).__name__.lower()} of shape {tuple(shape)}"
    return shown


def check_index(name: str, index: int, n: int) -> None:
    """Refuse the index of something that is not there; from the end is not counted.

    Raises:
        InvalidArgumentError: An index outside [0, n).
    """
    if not 0 <= index < n:
        raise InvalidArgumentError.of(name, f"be in [0, {n}), as there are so many", index)
