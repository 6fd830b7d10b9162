"""Feeds hostile arguments to every public callable; test_hostile_arguments.py runs it in a process of its own.

There annotations are not enforced from outside, as they are in the tests' own process. Prints what came of it as JSON.
"""

from __future__ import annotations

import collections
import inspect
import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

import numpy as np
import ray
import torch
import transformers

import persona_lens as pl
from tests.test_public_face import list_public
from tests.tiny import save_tiny
from tests.valid_arguments import ValidArguments

HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "5": lambda: 5, "-1": lambda: -1, "10**30": lambda: 10**30, "0.5": lambda: 0.5,
    "1e308": lambda: 1e308, "nan": lambda: math.nan, "inf": lambda: math.inf, "-inf": lambda: -math.inf,
    "text": lambda: "x", "empty text": lambda: "", "NUL": lambda: "\0", "surrogate": lambda: "\ud800",
    "up": lambda: "../..", "long": lambda: "x" * 5000, "bytes": lambda: b"x", "path": lambda: Path("none/such"),
    "[]": list, "{}": dict, "()": tuple, "[None]": lambda: [None], "[[]]": lambda: [[]], "['x']": lambda: ["x"],
    "('x',)": lambda: ("x",), "(nan,)": lambda: (math.nan,), "[-1]": lambda: [-1], "{'a': 1}": lambda: {"a": 1},
    "{1: None}": lambda: {1: None}, "set": set, "object": object, "function": lambda: lambda: None,
    "NaN tensor": lambda: torch.full((48,), math.nan), "empty tensor": lambda: torch.zeros(0),
    "infinite tensor": lambda: torch.full((3, 48), math.inf),
    "tensor of whole numbers": lambda: torch.zeros(3, 4).long(),
    "tensor of another length": lambda: torch.ones(7), "cube": lambda: torch.ones(2, 3, 5),
    "tensor of no axis": lambda: torch.tensor(1.0), "array": lambda: np.ones(4),
    "generator": lambda: (one for one in ("x",)),
}  # fmt: skip
SECONDS = 10
# Their arguments are checked by those that call them, or there is nothing to check.
LEFT_OUT_PARAMETERS = {"self", "cls", "args", "kwargs"}
OWN_FUNCTIONS = {("monitoring.OtherMonitor.choose", "read")}  # what is called there may raise what it likes
LEFT_OUT = {"HookedModel", "Message", "RunningApp", "checked"}  # the app is made by start_app alone


class ModelRanError(BaseException):
    """The call was taken for a good one: it went as far as running a model, a training, a cluster or a server."""


class HangError(BaseException):
    """The call did not come back."""


def run(*args: object, **kwargs: object) -> None:
    """Stand where work begins."""
    raise ModelRanError


@contextmanager
def limited() -> Iterator[None]:
    """Raise after some seconds."""

    def stop(*_: object) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def try_call(call: Callable[[], Any]) -> str:
    """Return what came of a call: ``fine``, ``refused``, or what was wrong with it."""
    try:
        with limited(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            result = call()
            if inspect.isgenerator(result):
                next(result, None)
                result.close()
    except ModelRanError:
        return "fine"
    except HangError:
        return "hang"
    except (pl.errors.PersonaLensError, ImportError):
        return "refused"
    except (FileNotFoundError, FileExistsError) as error:  # Python's own classes, in the form of ours
        return "refused" if str(error).startswith("`") else f"{type(error).__name__}: {error}"
    except TypeError as error:
        at_the_call = error.__traceback__ is not None and "checking.py" in _last_file(error)
        return "refused" if at_the_call else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def _last_file(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename if traceback else ""


def list_callables(valid: ValidArguments) -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any]]]:
    """Yield each public function, class and method: its name, what is called, and where its annotations stand."""
    seen: set[int] = set()
    for name, public in list_public().items():
        short = name.rsplit(".", 1)[-1]
        is_error = inspect.isclass(public) and issubclass(public, BaseException)
        if short in LEFT_OUT or is_error or getattr(public, "_is_protocol", False) or id(public) in seen:
            continue
        if not (inspect.isclass(public) or inspect.isfunction(public)):
            continue
        seen.add(id(public))
        yield name, public, public
        if not inspect.isclass(public):
            continue
        made = None
        for method, own in vars(public).items():
            if method.startswith("_") or (
                not isinstance(own, (staticmethod, classmethod)) and not inspect.isfunction(own)
            ):
                continue
            if inspect.isfunction(own):
                made = made if made is not None else valid.make("", public)
                yield f"{name}.{method}", getattr(made, method), own
            else:
                yield f"{name}.{method}", getattr(public, method), own.__func__


def main() -> None:
    """Try everything; print the counts and what was not refused politely."""
    only = sys.argv[1:]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model_folder = save_tiny(Path(folder) / "model", "llama", n_ctx=1024)
        model = pl.load_model(model_folder, dtype="float32", device="cpu")
        valid = ValidArguments(model, model_folder, Path(folder))
        counts: collections.Counter[str] = collections.Counter()
        found = []
        model.embed.register_forward_pre_hook(run)
        transformers.Trainer.train = ray.remote = socket.create_server = run
        for name, called, annotated in list_callables(valid):
            if only and name not in only:
                continue
            counts["callables"] += 1
            begun = time.monotonic()
            parameters = [
                one
                for one in inspect.signature(annotated).parameters
                if one not in LEFT_OUT_PARAMETERS and (name, one) not in OWN_FUNCTIONS
            ]
            for parameter in parameters:
                for label, make in HOSTILE.items():
                    given = valid.of(annotated)
                    given[parameter] = make()
                    counts["calls"] += 1
                    outcome = try_call(lambda called=called, given=given: called(**given))
                    counts[outcome if outcome in ("fine", "refused", "hang") else "unhelpful"] += 1
                    if outcome not in ("fine", "refused"):
                        found.append({"call": name, "parameter": parameter, "value": label, "outcome": outcome[:200]})
            if (took := time.monotonic() - begun) > SECONDS:
                print(f"{name}: {took:.0f} s", file=sys.stderr)
        os.chdir("/")
    print(json.dumps({"counts": counts, "found": found}, indent=1))


if __name__ == "__main__":
    main()
