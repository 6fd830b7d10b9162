"""Independent pieces of work on several processes or machines, by Ray; the models in them are loaded there, not sent.

A piece is a function without arguments. It is sent to a worker as it is, but for models: each of these is loaded again
by the name or folder that it was loaded from, once in every worker, and must prove to be the same. A worker that dies
is replaced and its piece given out again.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import torch

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError, ModelMismatchError, PersonaLensError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import (
    ModelInfo,
    ModelSource,
    describe_model,
    list_model_classes,
    load_model,
    read_origin,
)
from persona_lens.models.text.templates import read_settings
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.run import Workers

__all__ = ["RayWorkers", "Workers"]

T = TypeVar("T")
# A piece that has ended so many workers is not given to another.
_TRIES = 3
# What Ray is told of our models is told to all of this process.
_REGISTERING = threading.Lock()
# In a worker: its models by where they are from, and the device that they are loaded to.
_loaded: dict[ModelSource, HookedModel] = {}
_device: str | None = None


@checked
@dataclass(frozen=True)
class RayWorkers:
    """Ray processes that do pieces of work, each with a copy of the models that its pieces need.

    They run on the cluster that ``ray.init`` has joined, or, where it was not called, on this machine.

    Args:
        n: How many.
        cpus: Cores for each, and threads that it computes with.
        gpus: GPUs for each; with 0 it computes on the CPU.
        dtype: Of a copy that only the workers load, as in :func:`persona_lens.screening.screen_on_ray`; that of a model
            which is loaded here has this one's.

    Raises:
        InvalidArgumentError: ``n`` below 1, or ``cpus`` or ``gpus`` below 0 or not finite.

    Example:
        >>> import persona_lens as pl
        >>> pl.Run(workers=pl.distributed.RayWorkers(16, gpus=1)).workers
        RayWorkers(n=16, cpus=1, gpus=1, dtype='auto')
    """

    n: int
    cpus: float = 1
    gpus: float = 0
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidArgumentError.of("n", "be at least 1", self.n)
        for name, number in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not 0 <= number < math.inf:
                raise InvalidArgumentError.of(name, "be at least 0 and finite", number)

    def compute_each(self, pieces: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        """Do each piece of work in one of the workers; yield what they return, in the order of the pieces.

        What a piece raises is raised here, and ends the others. Pieces in which a file is written, such as those with a
        store, need a folder that every machine sees under the same path. The same pieces come to the same bytes as in
        this process on like machines with the same number of threads, else up to rounding.

        Args:
            pieces: Functions without arguments, such as ``functools.partial(pl.extract_persona_vector, model, trait)``;
                each independent of the others, and with the same result if it is done again.

        Raises:
            ImportError: Ray is not installed.
            InvalidArgumentError: A model that no name leads to or that was changed since it was loaded, a piece that
                cannot be sent for another reason, one that ended three workers, more for each worker than the cluster
                has, or, of workers that were :meth:`started`, while other pieces' results are half read.
            HooksPresentError: A model in a piece carries hooks.
            ModelMismatchError: A worker finds another model under the same name.

        Example:
            >>> from functools import partial
            >>> import persona_lens as pl
            >>> two, model = pl.distributed.RayWorkers(2), pl.load_model()  # doctest: +SKIP
            >>> traits = map(pl.load_trait, ["evil", "sycophancy"])  # doctest: +SKIP
            >>> works = [partial(pl.extract_persona_vector, model, trait) for trait in traits]  # doctest: +SKIP
            >>> vectors = list(two.compute_each(works))  # doctest: +SKIP
        """
        if pieces:
            with self._start(min(self.n, len(pieces))) as pool:
                yield from pool.compute_each(pieces)

    @contextmanager
    def started(self) -> Iterator[Workers]:
        """Start the processes for a while, so that several works share them and each loads a model once for all.

        Raises:
            ImportError, InvalidArgumentError: As for :meth:`compute_each`.

        Example:
            >>> import persona_lens as pl
            >>> with pl.distributed.RayWorkers(16, gpus=1).started() as workers:  # doctest: +SKIP
            ...     run = pl.Run(store, workers=workers)
            ...     vector = pl.extract_persona_vector(model, trait, run=run)
            ...     sweep = pl.sweep_layers(model, trait, vector, run=run)
        """
        with self._start(self.n) as pool:
            yield pool

    @contextmanager
    def _start(self, n: int) -> Iterator[_Pool]:
        ray = _import_ray()
        make = ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=-1, max_task_retries=_TRIES - 1
        )(_Worker).remote  # fmt: skip
        if not ray.is_initialized():
            ray.init()
        self._check_cluster(ray.cluster_resources())
        n_threads = max(1, round(self.cpus))
        pool = _Pool(ray, partial(make, n_threads, None if self.gpus else "cpu"), n)
        try:
            yield pool
        finally:
            for worker in pool.workers:
                ray.kill(worker)

    def _check_cluster(self, there: dict[str, float]) -> None:
        """Refuse what Ray would wait for, for ever."""
        for name, kind, asked in (("cpus", "CPU", self.cpus), ("gpus", "GPU", self.gpus)):
            if asked > there.get(kind, 0):
                hint = "Ask for less, or let Ray join a cluster that has more: ray.init(address=…)."
                raise InvalidArgumentError.of(
                    name, f"be at most those of the cluster, {there.get(kind, 0)}", asked, hint
                )


class _Pool:
    """Workers that have been started."""

    def __init__(self, ray: Any, make: Callable[[], Any], n: int) -> None:
        self.ray, self.make, self.n, self.workers = ray, make, n, [make() for _ in range(n)]
        self.is_read = False

    def compute_each(self, pieces: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        if not pieces:
            return
        # The first to end would end workers in the midst of the other's pieces.
        if self.is_read:
            rule, hint = "wait until the results of these workers' other pieces were read", "Read or close them first."
            raise InvalidArgumentError.of("pieces", rule, pieces, hint)
        self.is_read = True
        try:
            yield from self._compute_each(pieces)
        finally:
            self.is_read = False

    def _compute_each(self, pieces: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        self.workers += [self.make() for _ in range(self.n - len(self.workers))]
        # The first one now: what cannot be sent is refused at once.
        waiting = enumerate(chain([_send(self.ray, pieces[0])], (_send(self.ray, piece) for piece in pieces[1:])))
        # A worker is given a piece once it has begun, which one that finds no room never does.
        busy: dict[Any, tuple[Any, int | None]] = {worker.begin.remote(): (worker, None) for worker in self.workers}
        done, n_given = {}, 0
        try:
            while n_given < len(pieces):
                (ended, *_), _ = self.ray.wait(list(busy))
                worker, index = busy.pop(ended)
                result = _get(self.ray, ended, index)
                if index is not None:
                    done[index] = result
                for index, sent in islice(waiting, 1):
                    busy[worker.compute.remote(*sent)] = (worker, index)
                while n_given in done:
                    yield done.pop(n_given)
                    n_given += 1
        finally:
            # What nobody waits for any more, as another piece has failed. Ray ends no call that has begun but by ending
            # its process; the next pieces get another.
            for worker in [worker for worker, index in busy.values() if index is not None]:
                self.ray.kill(worker)
                self.workers.remove(worker)


class _Worker:
    """A process that does pieces of work, one after the other."""

    def __init__(self, n_threads: int, device: str | None) -> None:
        global _device
        torch.set_num_threads(n_threads)
        _device = device
        if device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it as it is, and pieces may load models themselves

    def begin(self) -> None:
        """Return as soon as the process is there."""

    def compute(self, models: Sequence[tuple[ModelSource, ModelInfo]], sent: Sequence[Any]) -> Any:
        """Load the models that a piece needs, and do it.

        Args:
            models: From where they are, and what they must be.
            sent: A reference to the piece, which Ray would follow, and read before its models are there, if it did not
                stand in a list.
        """
        import ray

        for source, info in models:
            model = load_once(source)
            found = describe_model(model)
            if found != info:
                hint = "Give every machine the same files."
                raise ModelMismatchError.of("model", f"be the same on every machine, {info}", found, hint)
            if _hash_chat(model) != source.chat:
                rule = "have the chat template and the end tokens of its files, which workers load"
                hint = "Save model and tokenizer with save_pretrained as they are now, and load that folder."
                raise ModelMismatchError.of("model.tokenizer", rule, "others", hint)
        return ray.get(sent[0])()


def load_once(source: ModelSource) -> HookedModel:
    """Load a model, once in a process."""
    if source not in _loaded:
        config = None
        if source.quantization is not None:
            from transformers.quantizers.auto import AutoQuantizationConfig

            config = AutoQuantizationConfig.from_dict(json.loads(source.quantization))
        _loaded[source] = load_model(
            source.model,
            adapter=source.adapter,
            backend=source.backend,
            dtype=source.dtype,
            device=None if source.device_map else _device,
            device_map=json.loads(source.device_map or "null"),
            quantization_config=config,
            template_arguments=json.loads(source.template_arguments or "null"),
        )
    return _loaded[source]


def rename_loaded(source: ModelSource, name: ModelSource) -> None:
    """Let a model of this process be found by other arguments, which lead to the same one."""
    _loaded[name] = _loaded.pop(source)


def _send(ray: Any, piece: Callable[[], Any]) -> tuple[list[tuple[ModelSource, ModelInfo]], list[Any]]:
    """Put a piece where workers find it; return from where its models are, and a reference to it."""
    models: dict[ModelSource, ModelInfo] = {}

    def reduce(model: HookedModel) -> ModelSource:
        source, info = _find_source(model)
        models[source] = info
        return source

    with _REGISTERING:
        classes = list_model_classes()
        for one in classes:
            ray.util.register_serializer(one, serializer=reduce, deserializer=load_once)
        try:
            sent = ray.put(piece)
        except PersonaLensError:
            raise
        except Exception as error:  # whatever an object says that cannot be sent
            rule = "be functions that can be sent to another process, with all that they refer to"
            raise InvalidArgumentError.of("pieces", rule, piece, f"{error.__cause__ or error}.") from error
        finally:
            for one in classes:
                ray.util.deregister_serializer(one)
    return list(models.items()), [sent]


def _find_source(model: HookedModel) -> tuple[ModelSource, ModelInfo]:
    """Return what leads to a model again, and what must be found there.

    Raises:
        InvalidArgumentError: Nothing does.
        HooksPresentError: It carries hooks, which no file has.
    """
    check_unsteered(model)
    origin, info = read_origin(model), describe_model(model)
    hint = "Workers load it again: save it with save_pretrained, and load that folder with load_model."
    if origin is None:
        rule = "be loaded by load_model, from a name, a folder or a file"
        raise InvalidArgumentError.of("model", rule, f"one that was loaded elsewhere, {info.name}", hint)
    if origin.fingerprint != info.fingerprint:
        rule = "have the weights that it was loaded with"
        raise InvalidArgumentError.of("model", rule, f"one that was changed since, {info.name}", hint)
    arguments = read_settings(model.tokenizer).arguments
    return replace(origin.source, template_arguments=arguments, chat=_hash_chat(model)), info


def _hash_chat(model: HookedModel) -> str:
    tokenizer = model.tokenizer
    return hash_json([str(getattr(tokenizer, "chat_template", None)), sorted(stop_token_ids(tokenizer))])


def _get(ray: Any, reference: Any, index: int | None) -> Any:
    """Return what a worker returned; raise what it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        if index is None:
            rule, hint = "be able to begin", "Every machine needs this package, of this version."
            raise InvalidArgumentError.of("workers", rule, str(error), hint) from error
        rule = f"leave their workers alive; number {index} ended {_TRIES}"
        hint = "The machine may have too little memory for so many copies of the model: ask for fewer workers."
        raise InvalidArgumentError.of("pieces", rule, str(error), hint) from error


def _import_ray() -> Any:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise ImportError("Workers need Ray. Install it with: pip install 'persona-lens[ray]'") from error
    return ray
