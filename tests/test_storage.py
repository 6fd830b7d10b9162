import json
import os
import random

import pytest
import safetensors.torch
import torch

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.files import write_bytes_atomically, write_json
from persona_lens.storage import Shard, load_shard, save_shard


def test_a_shard_survives_the_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    save_shard(path, Shard({"x": torch.arange(6.0).view(2, 3)}, {"né": [1, None]}))
    shard = load_shard(path)
    assert torch.equal(shard.tensors["x"], torch.arange(6.0).view(2, 3))
    assert shard.records == {"né": [1, None]}


def test_every_truncation_of_a_shard_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_shard(path, Shard({"x": torch.ones(100)}, {"a": 1}))
    whole = path.read_bytes()
    for length in (0, 4, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="cut off"):
            load_shard(path)


SHARD = Shard(
    {"x": torch.linspace(-3, 3, 24).view(4, 6), "n": torch.arange(5), "flags": torch.tensor([True, False])},
    {"texts": ["a text", "né"], "scores": [1.5, None, 2.25]},
)


def is_alike(one, other):
    """Whether two shards are the same, bit by bit."""
    types = [{name: (t.dtype, t.shape) for name, t in shard.tensors.items()} for shard in (one, other)]
    return (one.records, types[0]) == (other.records, types[1]) and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_of_a_shard_is_read_as_another_content(tmp_path):
    path = tmp_path / "a.safetensors"
    save_shard(path, SHARD)
    whole = path.read_bytes()
    bits = range(0, 8 * len(whole), 5)  # each place in a byte, throughout
    refused = 0
    for bit in bits:
        path.write_bytes(flip(whole, bit))
        try:
            assert is_alike(load_shard(path), SHARD), bit
        except FileFormatError:
            refused += 1
    assert refused > 0.99 * len(bits)


def test_a_store_computes_anew_whatever_is_damaged_and_reads_what_it_computed(tmp_path):
    """Bits flipped, tails zeroed, bytes missing or added: never another content, never an error."""
    store = pl.ShardStore(tmp_path, {})
    path = store.folder / "a.safetensors"
    store.load_or_compute("a", lambda: SHARD)
    whole = path.read_bytes()
    draw = random.Random(0)
    damaged = [flip(whole, draw.randrange(8 * len(whole))) for _ in range(300)]
    damaged += [whole[:-n] + bytes(n) for n in (1, 8, 100, len(whole))] + [whole[:-1], whole + b"\0", b""]
    computed = []
    for data in damaged:
        path.write_bytes(data)
        found = store.load_or_compute("a", lambda: computed.append(1) or SHARD)
        assert is_alike(found, SHARD)
        assert is_alike(load_shard(path), SHARD)
    assert len(computed) > 0.95 * len(damaged)  # a tail may have been zero, and True has 255 ways to be written


def test_a_shard_without_a_checksum_is_read_by_name_and_computed_anew_in_a_store(tmp_path):
    """As versions before wrote them."""
    store = pl.ShardStore(tmp_path, {})
    path = store.folder / "a.safetensors"
    write_bytes_atomically(path, safetensors.torch.save({"x": torch.ones(2)}, metadata={"persona_lens": "1"}))
    assert load_shard(path).records == 1
    assert store.load_or_compute("a", lambda: Shard(records=2)).records == 2


def test_the_same_shard_is_the_same_file(tmp_path):
    for name in ("a", "b", "c"):
        save_shard(tmp_path / name, SHARD)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_tensor_that_was_read_stays_when_its_file_is_written_over(tmp_path):
    path = tmp_path / "a.safetensors"
    save_shard(path, SHARD)
    shard = load_shard(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert is_alike(shard, SHARD)


@pytest.mark.parametrize("text", ["", "{junk", "{}", '{"seed": 1}'])
def test_a_stores_damaged_config_is_written_anew(tmp_path, text):
    store = pl.ShardStore(tmp_path, {"seed": 0})
    (store.folder / "config.json").write_text(text)
    pl.ShardStore(tmp_path, {"seed": 0})
    assert json.loads((store.folder / "config.json").read_text()) == {"seed": 0}


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match="persona_lens wrote"):
        load_shard(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_shard(tmp_path / "nothing.safetensors")


def test_content_that_json_cannot_hold_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_store_computes_each_shard_once_and_again_if_it_is_damaged(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return Shard({"x": torch.ones(3)}, "r")

    store = pl.ShardStore(tmp_path, {"seed": 0})
    store.load_or_compute("a", compute)
    store.load_or_compute("a", compute)
    assert len(calls) == 1
    file = store.folder / "a.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    assert store.load_or_compute("a", compute).records == "r"
    assert len(calls) == 2


def test_runs_of_different_configs_never_share_a_folder(tmp_path):
    folders = {pl.ShardStore(tmp_path, {"seed": seed}).folder for seed in range(3)}
    assert len(folders) == 3


def test_a_config_is_the_same_run_whatever_the_order_of_its_keys(tmp_path):
    assert pl.ShardStore(tmp_path, {"a": 1, "b": 2}).folder == pl.ShardStore(tmp_path, {"b": 2, "a": 1}).folder


def test_tensors_of_any_memory_order_and_with_gradients_are_kept(tmp_path):
    tensor = torch.arange(6.0, requires_grad=True).view(2, 3).T
    save_shard(tmp_path / "a.safetensors", Shard({"x": tensor}))
    assert torch.equal(load_shard(tmp_path / "a.safetensors").tensors["x"], tensor)


def test_a_result_is_as_readable_as_any_other_file(tmp_path):
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_what_was_just_computed_is_what_a_resumed_run_reads(tmp_path):
    """JSON turns tuples into lists: also at once, not only after a restart."""
    store = pl.ShardStore(tmp_path, {})
    first = store.load_or_compute("a", lambda: Shard(records=(1, 2)))
    again = store.load_or_compute("a", lambda: Shard())
    assert first.records == again.records == [1, 2]


@pytest.mark.parametrize("text", ["{junk", "", "[" * 100_000])
def test_a_shard_whose_records_are_no_json_is_refused_and_computed_again(tmp_path, text):
    store = pl.ShardStore(tmp_path, {})
    path = store.folder / "a.safetensors"
    write_bytes_atomically(path, safetensors.torch.save({}, metadata={"persona_lens": text}))
    with pytest.raises(FileFormatError, match="damaged"):
        load_shard(path)
    assert store.load_or_compute("a", lambda: Shard(records="whole")).records == "whole"


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step, failure):
    path = tmp_path / "a.bin"
    write_bytes_atomically(path, b"old")

    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 2  # the old file, and the new one that is under way
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(failure):
            write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "..", ".hidden", "", "a\0b", "a\nb", "x" * 101, "C:\\x", "~"]
)
def test_a_name_that_would_leave_the_store_is_refused_and_nothing_is_computed(tmp_path, name):
    store = pl.ShardStore(tmp_path / "store", {})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidArgumentError, match="`name`"):
        store.load_or_compute(name, lambda: pytest.fail("computed"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["part-0", "a b", "évil", "lr+1.5", "x" * 100])
def test_an_ordinary_name_is_kept_in_the_store(tmp_path, name):
    store = pl.ShardStore(tmp_path, {})
    store.load_or_compute(name, lambda: Shard(records=1))
    assert store.load_or_compute(name, lambda: pytest.fail("computed again")).records == 1
