"""Where long work is kept, and what is computed again."""

from dataclasses import dataclass

import pytest
import torch

from persona_lens.errors import InvalidArgumentError
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.storage import Shard, ShardStore


@dataclass(frozen=True)
class Share(Record):
    value: float


def never():
    pytest.fail("computed again")


@pytest.fixture
def run(tmp_path):
    return Run(ShardStore(tmp_path, {"seed": 0}))


def test_a_finished_shard_is_read_back_and_not_computed_again(run):
    for compute in (lambda: Shard({"x": torch.arange(3)}, ["a"]), never):
        shard = run.load_or_compute("part-0", compute)
        assert torch.equal(shard.tensors["x"], torch.arange(3))
        assert shard.records == ["a"]


def test_a_finished_record_is_read_back_exactly_and_not_measured_again(run):
    for measure in (lambda: Share(1 / 3), never):
        assert run.load_or_measure("share", Share, measure) == Share(1 / 3)


def test_without_a_store_everything_is_computed_each_time():
    run, asked = Run(), []
    for _ in range(2):
        run.load_or_compute("part-0", lambda: asked.append("shard") or Shard())
        assert run.load_or_measure("share", Share, lambda: asked.append("record") or Share(1.0)) == Share(1.0)
    assert asked == ["shard", "record"] * 2
    assert run.part({"trait": "evil"}) is run


def test_a_part_keeps_its_own_shards_and_shows_progress_as_the_whole_does(run):
    shown = Run(run.store, progress=lambda label, total: None)
    evil, kind = (shown.part({"trait": name}) for name in ("evil", "kind"))
    assert evil.progress is shown.progress
    for part, value in ((evil, 1.0), (kind, 2.0), (run, 3.0)):
        assert part.load_or_measure("share", Share, lambda value=value: Share(value)) == Share(value)
    assert run.part({"trait": "evil"}).load_or_measure("share", Share, never) == Share(1.0)
    assert evil.folder.parent == run.folder
    assert evil.folder != kind.folder


def test_a_run_that_keeps_nothing_has_no_folder(run, tmp_path):
    assert run.folder.parent == tmp_path
    with pytest.raises(InvalidArgumentError, match="store"):
        Run().folder  # noqa: B018
