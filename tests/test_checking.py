"""Types of arguments, checked at the call."""

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import persona_lens as pl
from persona_lens.checking import checked, fits
from persona_lens.errors import ArgumentTypeError, InvalidArgumentError
from tests.hostile_arguments import LEFT_OUT
from tests.test_public_face import list_public

FITTING = [
    (1, int),
    (np.int64(1), int),
    (1, float),
    (np.float32(1), float),
    (np.int64(1), float),
    (True, bool),
    ("x", str),
    (None, int | None),
    (np.int64(1), int | None),
    ([1, 2.5], Sequence[float]),
    ((), tuple[int, ...]),
    ("a", str | Sequence[str]),
    (("a", 1), tuple[str, int]),
    ({"a": 1}, Mapping[str, int]),
    ({"a": [1]}, Mapping[str, Sequence[int]]),
    (Path("x"), str | Path),
    (torch.zeros(2, 3), Float[Tensor, "row col"]),
    (torch.zeros(2), Float[Tensor, " row"] | None),
    ("a", Hashable),
    (torch.zeros(2, dtype=torch.long), Int[Tensor, " row"]),
    (len, Callable[..., Any]),
    ("first", Literal["first", "last"]),
    (frozenset({1}), frozenset[int]),
    ({"role": "user", "content": "Hi"}, pl.models.Message),
    (object(), Any),
]
OTHERS = [
    ("1", int),
    (1.0, int),
    (None, int),
    ("1", float),
    (1 + 0j, float),
    (b"x", str),
    ("ab", Sequence[str]),
    (b"ab", Sequence[int]),
    (["a", 1], Sequence[str]),
    ([[1], ["a"]], Sequence[Sequence[int]]),
    ((1, "a"), tuple[int, ...]),
    ((1,), tuple[int, int]),
    ([1], tuple[int, ...]),
    ({"a": "b"}, Mapping[str, int]),
    ({1: 1}, Mapping[str, int]),
    ([("a", 1)], Mapping[str, int]),
    (torch.zeros(2), Float[Tensor, "row col"]),
    (torch.zeros(2, dtype=torch.long), Float[Tensor, " row"]),
    (np.zeros(2), Float[Tensor, " row"]),
    ([0.0], Float[Tensor, " row"]),
    ("mid", Literal["first", "last"]),
    (5, Callable[..., Any]),
    ({1.5}, frozenset[int]),
    ([], Hashable),
]


@pytest.mark.parametrize(("value", "hint"), FITTING)
def test_a_value_of_the_type_fits(value, hint):
    assert fits(value, hint)


@pytest.mark.parametrize(("value", "hint"), OTHERS)
def test_a_value_of_another_type_does_not_whichever_of_its_parts_is_wrong(value, hint):
    assert not fits(value, hint)


@checked
def shout(text: str, times: int = 1, *more: float, mark: Literal["!", "?"] = "!", **options: int) -> str:
    """Shout."""
    return text + mark * times


@checked
@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice."""

    pitch: float
    words: tuple[str, ...] = ()

    def say(self, times: int) -> str:
        """Say it."""
        return " ".join(self.words * times)

    @classmethod
    def of(cls, word: str) -> "Voice":
        """Make one."""
        return cls(1, (word,))


def test_a_good_call_is_as_it_was():
    assert shout("a", np.int64(2), 1, 2.5, mark="?", left=1) == "a??"
    assert inspect.signature(shout).parameters.keys() == {"text", "times", "more", "mark", "options"}
    assert (shout.__module__, shout.__qualname__, shout.__doc__) == (__name__, "shout", "Shout.")
    voice = Voice.of("ha")
    assert voice.say(2) == "ha ha"
    assert dataclasses.replace(voice, pitch=2) == Voice(2.0, ("ha",))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shout(5), "`text` must be of type str. Got 5."),
        (lambda: shout("a", times="2"), "`times` must be of type int. Got '2'."),
        (lambda: shout("a", 1, "x"), "`more` must be of type float. Got 'x'."),
        (lambda: shout("a", left="x"), "`options` must be of type int. Got 'x'."),
        (lambda: Voice("high"), "`pitch` must be of type float. Got 'high'."),
        (lambda: Voice(1.0, "word"), r"`words` must be of type tuple\[str, ...\]. Got 'word'."),
        (lambda: Voice(1.0).say("x"), "`times` must be of type int. Got 'x'."),
        (lambda: Voice.of(5), "`word` must be of type str. Got 5."),
    ],
)
def test_a_wrong_type_is_a_type_error_that_names_the_parameter(call, message):
    with pytest.raises(ArgumentTypeError, match=message) as caught:
        call()
    assert isinstance(caught.value, TypeError)


@checked
def read(model: str | Path, direction: Float[Tensor, " d_model"] | None = None) -> None:
    """Read."""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read("x", torch.zeros(30, 576)), r"Got a float32 tensor of shape \(30, 576\)\.$"),
        (lambda: read("x", np.zeros((30, 576))), r"Got a float64 ndarray of shape \(30, 576\)\.$"),
        (lambda: read("x", torch.tensor([1, 2])), r"Got tensor\(\[1, 2\]\)\.$"),
        (
            lambda: read(torch.nn.Linear(2, 3)),
            r"Got a Linear\. Give its name or folder: the weights are loaded here\.$",
        ),
        (lambda: shout(torch.nn.Linear(2, 3)), r"Got a Linear\.$"),
        (lambda: read(torch.nn.Linear), r"Got <class 'torch\.nn\.modules\.linear\.Linear'>\.$"),
        (lambda: Voice(torch.tensor(1.5)), r"Got tensor\(1\.5000\)\. Give the number in it: pitch\.item\(\)\.$"),
    ],
)
def test_what_takes_many_lines_is_told_in_a_few_words(call, message):
    with pytest.raises(ArgumentTypeError, match=message):
        call()


def test_a_word_that_is_none_of_those_listed_is_told_which_there_are():
    with pytest.raises(InvalidArgumentError, match=r"`mark` must be one of '!', '\?'\. Got '\.'"):
        shout("a", mark=".")


def test_too_few_too_many_and_unknown_arguments_are_pythons_own_errors_with_the_functions_name():
    for call in (lambda: shout(), lambda: Voice(), lambda: Voice(1.0, (), 3), lambda: Voice(1.0, word="x")):
        with pytest.raises(TypeError, match=r"(shout|Voice)\(\) (missing|too many|got an unexpected)"):
            call()


def test_every_public_function_and_class_checks_its_arguments():
    unchecked = []
    for name, public in list_public().items():
        is_error = inspect.isclass(public) and issubclass(public, BaseException)
        if name.rsplit(".", 1)[-1] in {*LEFT_OUT, "Record"} or is_error or getattr(public, "_is_protocol", False):
            continue
        if inspect.isfunction(public) or (inspect.isclass(public) and public.__module__.startswith("persona_lens")):
            call = public.__init__ if inspect.isclass(public) else public
            unchecked += [] if hasattr(call, "__checked__") else [name]
    assert unchecked == []
