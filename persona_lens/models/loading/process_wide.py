"""What loading changes for the whole process while it lasts, one thread at a time."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import modeling_utils
from transformers.utils import logging as transformers_logging

# Another thread's weights would be made empty too, and the last thread to end would put back what another had set.
_LOADING = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the loading libraries' bars and notices out of a notebook; errors pass. Other threads' loading waits."""
    with _LOADING:
        bars = transformers_logging.is_progress_bar_enabled()
        verbosity = transformers_logging.get_verbosity()
        root = logging.getLogger().level
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        logging.getLogger().setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            logging.getLogger().setLevel(root)
            if bars:
                transformers_logging.enable_progress_bar()


@contextmanager
def empty_weights() -> Iterator[None]:
    """Make modules without memory for their weights. Other threads' loading waits."""
    with _LOADING, init_empty_weights():
        yield


@contextmanager
def unmapped_files() -> Iterator[None]:
    """Let transformers read each tensor of a safetensors file into memory of its own, in place of mapping the file.

    What is read from a mapped file stays resident beside what is made of it until the last file is read: two or three
    times the weights, where they are rounded or laid out anew. Other threads' loading waits.
    """

    def open_file(filename: str, framework: str, device: str = "cpu", **_: object) -> Any:
        return safe_open(filename, framework=framework, device=device, backend="pread")

    reader = vars(modeling_utils)  # it has no option for it
    with _LOADING:
        own = reader["safe_open"]
        reader["safe_open"] = open_file
        try:
            yield
        finally:
            reader["safe_open"] = own
