"""How a command or a script ends: with a status, and a line on standard error where something was wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from persona_lens.errors import PersonaLensError

WRONG = 2
"""An argument, a file or a disk is wrong; the message says which."""
INTERRUPTED, BROKEN_PIPE, TERMINATED = (128 + number for number in (signal.SIGINT, 13, signal.SIGTERM))
"""As shells say it of a program that a signal ended; 13 is SIGPIPE, which not every system has."""

_MAX_SHOWN = 200  # characters of a path
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_to_end(work: Callable[[], int | None], go_on: str) -> int:
    """Do the work of a command; whatever can be foreseen ends it in one line, and no traceback.

    Ctrl-C and SIGTERM end it as an error does: files under way are removed, and finished shards stay.

    Args:
        work: Returns the exit status; None is 0.
        go_on: What to say to someone who broke it off, or whose disk is full: how to go on.

    Returns:
        The exit status.
    """
    try:
        with _ended_by_sigterm():
            status = work() or 0
        sys.stdout.flush()  # here, where a closed pipe can be answered
        return status
    except KeyboardInterrupt:
        _say(f"Interrupted. {go_on}")
        return INTERRUPTED
    except _Terminated:
        _say(f"Ended by SIGTERM. {go_on}")
        return TERMINATED
    except BrokenPipeError:
        # As `head` does to whoever writes to it. What Python still holds for the pipe goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (PersonaLensError, ImportError) as error:
        _say(str(error))
        return WRONG
    except OSError as error:
        _say(_describe(error) + (f" {go_on}" if error.errno in _NO_ROOM else ""))
        return WRONG


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(error: OSError) -> str:
    """Return what the system says, and of which file, in one line; our own messages as they are."""
    if error.strerror is None or error.errno is None:
        return str(error)
    shown = (str(name) for name in (error.filename, error.filename2) if name is not None)
    names = [repr(name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}...") for name in shown]
    return f"{error.strerror}: {' -> '.join(names)}." if names else f"{error.strerror}."


def _say(text: str) -> None:
    print(text, file=sys.stderr)
