"""Pieces of work on a real Ray of two worker processes on this machine."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

import persona_lens as pl
from persona_lens import distributed
from persona_lens.distributed import RayWorkers
from persona_lens.errors import HooksPresentError, InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation import conditions
from persona_lens.models.loading.fingerprints import forget_origin
from persona_lens.run import Run
from tests.killed_work import ROWS, make_vector
from tests.small_trait import LengthJudge, tiny_trait
from tests.tiny import save_tiny

pytest.importorskip("ray")
TWO = RayWorkers(2)
SAMPLING = pl.Sampling(max_new_tokens=8, rollouts=10, batch_size=8)
SETTINGS = pl.FinetuneSettings(
    rank=2, alpha=4, batch_size=2, accumulation=1, warmup_steps=1, max_tokens=64, learning_rate=1e-3, dtype="float32"
)
slow = pytest.mark.slow  # starts a Ray cluster
pytestmark = pytest.mark.filterwarnings(  # Ray's own, about its own settings
    "ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"
)


@pytest.fixture(scope="module")
def two(cluster):
    """Two workers for all tests of this file: each start imports the package for longer than a test looks at it."""
    with TWO.started() as started:
        yield started


def die():
    """End this process as the kernel does one that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(mark):
    """End this process; the next one goes on."""
    if not mark.exists():
        mark.touch()
        die()


class FatalJudge(LengthJudge):
    """Its first verdict on a response with some text ends the process; where none is to be ended, it only judges."""

    def __init__(self, mark, text=""):
        self.mark, self.text = mark, text

    def score(self, questions, responses):
        if self.text in questions:
            die_once(self.mark)
        return super().score(questions, responses)


class Here:
    """Workers that are this process, with one thread as the others have."""

    def compute_each(self, pieces):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield from (piece() for piece in pieces)
        torch.set_num_threads(threads)


def tell(value):
    return value


def train(folder, out, number, mark):
    """One of several trainings; the second one's process is ended once."""
    if number == 1:
        die_once(mark)
    steered = pl.steer(
        make_vector(pl.load_model(folder, dtype="float32", device="cpu")), layer=1, coefficient=float(number)
    )
    done = pl.finetune(folder, ROWS[:8], out / str(number), settings=SETTINGS, intervention=steered)
    return done.losses


@slow
def test_with_a_worker_killed_in_each_a_vector_scores_and_trainings_are_those_of_one_process(
    two, tiny_model, tiny_folder, tmp_path, monkeypatch
):
    """All kept on disk: not only what comes back but every shard and every adapter is the same file."""
    monkeypatch.setattr(conditions, "_RESPONSES_AT_ONCE", 40)
    found, marks = {}, [tmp_path / f"killed in {work}" for work in ("extraction", "conditions", "training")]
    for name, workers in (("two", two), ("one", Here())):
        run = pl.Run(pl.ShardStore(tmp_path / name, {"seed": 0}), workers=workers)
        given = {"sampling": SAMPLING, "run": run}
        vector = pl.extract_persona_vector(tiny_model, tiny_trait(), judge=FatalJudge(marks[0], "Who?"), **given)
        ways = [pl.Condition(pl.steer(vector, layer=1, coefficient=float(c)), name=f"{c}") for c in range(8)]
        scores = pl.score_conditions(tiny_model, FatalJudge(marks[1], "Why?"), ways, ["Why?", "When?"], **given)
        works = [partial(train, tiny_folder("llama"), run.folder, number, marks[2]) for number in range(2)]
        losses = list(run.compute_each(works))
        assert all(mark.exists() for mark in marks), "no worker was killed"
        vector.save(run.folder / "vector.safetensors")
        scores.save(run.folder / "scores.json")
        files = [path for path in run.folder.rglob("*") if path.is_file()]
        found[name] = {str(path.relative_to(run.folder)): path.read_bytes() for path in files} | {"losses": losses}
    one, several = found["one"], found["two"]
    names = [Path(name).name.partition("-")[0] for name in one]
    assert [names.count(kind) for kind in ("extraction", "conditions", "adapter_model.safetensors")] == [2, 4, 2]
    assert [name for name in {**one, **several} if one.get(name) != several.get(name)] == []


def wait_and_tell(value, awaited, mark):
    """Tell a value when all files that are awaited are there, and leave a mark."""
    while not all(path.exists() for path in awaited):
        time.sleep(0.01)
    mark.touch()
    return value


def load_after(mark, path):
    wait_and_tell(None, [mark], mark)
    return pl.load_model(path)


@slow
def test_what_pieces_return_and_raise_comes_back_in_their_order(two, tmp_path):
    """The first one ends after all others but the last, which fails after it."""
    seen, marks = [], [tmp_path / str(n) for n in range(5)]
    first = partial(wait_and_tell, 0, marks[1:], marks[0])
    others = [partial(wait_and_tell, n, [], marks[n]) for n in range(1, 5)]
    failing = partial(load_after, marks[0], tmp_path / "none")
    with pytest.raises(pl.errors.ModelNotFoundError, match="none"):
        seen.extend(two.compute_each([first, *others, failing]))
    assert seen == list(range(5))


def work_for_ever(begun):
    begun.write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)


def fail_after(mark):
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.01)
    raise InvalidArgumentError("this one fails")


@slow
def test_a_piece_that_fails_ends_the_others_and_the_workers_go_on_to_the_next_pieces(two, tmp_path):
    begun = tmp_path / "begun"
    with pytest.raises(InvalidArgumentError, match="this one fails"):
        list(two.compute_each([partial(work_for_ever, begun), partial(fail_after, begun)]))
    assert list(two.compute_each([partial(tell, n) for n in range(4)])) == list(range(4))
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(begun.read_text())).wait(60)


def test_pieces_wait_until_the_results_of_the_same_workers_others_were_read(monkeypatch):
    pool = distributed._Pool(None, object, 1)
    monkeypatch.setattr(pool, "_compute_each", lambda pieces: (piece() for piece in pieces))
    first = pool.compute_each([int, str])
    assert next(first) == 0
    with pytest.raises(InvalidArgumentError, match="pieces"):
        next(pool.compute_each([int]))
    first.close()
    assert list(pool.compute_each([int])) == [0]


@slow
@pytest.mark.usefixtures("cluster")
def test_a_piece_that_ends_worker_after_worker_is_given_up(monkeypatch):
    monkeypatch.setattr(distributed, "_TRIES", 1)
    with pytest.raises(InvalidArgumentError, match="number 0 ended 1"):
        list(RayWorkers(1, cpus=0).compute_each([die]))  # beside those that hold both cores


def test_a_worker_that_finds_other_weights_under_the_name_refuses_them(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_loaded", {})
    model = pl.load_model(save_tiny(tmp_path, "llama"), dtype="float32", device="cpu")
    needed = distributed._find_source(model)
    save_tiny(tmp_path, "llama", seed=1)
    with pytest.raises(ModelMismatchError, match="same files"):
        distributed._Worker(torch.get_num_threads(), "cpu").compute([needed], [])


def test_a_worker_spreads_the_weights_as_they_are_spread_here(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_loaded", {})
    monkeypatch.setattr(distributed, "_device", "cpu")
    folder = save_tiny(tmp_path, "llama")
    for device_map, kept in (("disk", '"disk"'), ({"": "cpu", "lm_head": "disk"}, '{"": "cpu", "lm_head": "disk"}')):
        model = pl.load_model(folder, device_map=device_map)
        source, info = distributed._find_source(model)
        assert source.device_map == kept
        there = distributed.load_once(source)
        assert pl.describe_model(there) == info
        assert folder in Path("/proc/self/maps").read_text()
    for one_device in ("cpu", {"": "cpu"}):
        source, _ = distributed._find_source(pl.load_model(folder, device_map=one_device))
        assert source.device_map == ""


@slow
def test_what_cannot_be_sent_is_refused_by_name(two, tiny_folder):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")

    def send(piece):
        list(two.compute_each([piece]))

    with pl.steering(model, make_vector(model), layer=1, coefficient=1.0):
        with pytest.raises(HooksPresentError):
            send(partial(pl.describe_model, model))
        model(torch.zeros(1, 1, dtype=torch.long))  # or the hooks would complain that nothing reached them
    with pytest.raises(InvalidArgumentError, match="`pieces` must be functions that can be sent"):
        send(partial(tell, threading.Lock()))
    with torch.no_grad():
        model.blocks[0].mlp.W_in.mul_(2)
    with pytest.raises(InvalidArgumentError, match="changed since"):
        send(partial(pl.describe_model, model))
    forget_origin(model)
    with pytest.raises(InvalidArgumentError, match="save_pretrained"):
        send(partial(pl.extract_persona_vector, model, tiny_trait()))
    with pytest.raises(InvalidArgumentError, match=r"`gpus` must be at most those of the cluster, 0"):
        list(RayWorkers(1, gpus=1).compute_each([partial(tell, 1)]))


def test_a_run_without_workers_needs_no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(pl.Run().compute_each([partial(tell, 1), partial(tell, 2)])) == [1, 2]
    assert list(pl.Run(workers=TWO).compute_each([])) == []
    with pytest.raises(ImportError, match=r"persona-lens\[ray\]"):
        list(pl.Run(workers=TWO).compute_each([partial(tell, 1)]))


@pytest.mark.parametrize("given", [{"n": 0}, {"n": 1, "cpus": -1.0}, {"n": 1, "gpus": float("inf")}])
def test_numbers_that_make_no_sense_are_refused(given):
    with pytest.raises(InvalidArgumentError):
        RayWorkers(**given)


def test_a_run_that_is_sent_keeps_its_store_alone(tmp_path, monkeypatch):
    """As copying does: a piece shares no work of its own, and shows nothing where nobody looks."""
    monkeypatch.chdir(tmp_path)
    run = pl.Run(pl.ShardStore(Path("runs"), {}), workers=TWO)
    make, given = run.__reduce__()
    sent = make(*given)
    assert sent.folder == run.folder
    assert sent.folder.is_absolute()
    assert sent.workers is None
    with sent.progress("nothing", 1) as advance:
        advance(1)
    assert isinstance(TWO, pl.distributed.Workers)
    assert isinstance(sent, Run)
