"""Vectors of written answers are read once for all scripts."""

import pytest
import torch

import persona_lens as pl
from persona_lens.reproduction import written_vectors
from persona_lens.reproduction.written_vectors import read_written_vector
from persona_lens.run import Run
from persona_lens.storage import ShardStore


@pytest.fixture
def shared(tmp_path):
    return Run(ShardStore(tmp_path, {"model": "tiny"}))


@pytest.fixture
def other(roomy_folder):
    """A model in another process: another object of the same weights."""
    return pl.load_model(roomy_folder, dtype="float32", device="cpu")


@pytest.fixture
def model(roomy_folder):
    return pl.load_model(roomy_folder, dtype="float32", device="cpu")


def forbid_reading(monkeypatch):
    def read(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(written_vectors, "read_persona_vector", read)


def test_another_script_takes_the_vector_that_one_has_read(model, other, shared, monkeypatch):
    read = read_written_vector(model, "evil", 2, shared)
    examples = pl.traits.load_written_examples("evil", "training")[:2]
    whole = pl.read_persona_vector(model, "evil", examples)
    forbid_reading(monkeypatch)
    taken = read_written_vector(other, "evil", 2, shared)
    for vector in (read, taken):
        assert torch.equal(vector.directions, whole.directions)
        assert vector.provenance == whole.provenance
        assert vector.counts == whole.counts


@pytest.mark.parametrize(("trait", "n_examples"), [("evil", 3), ("empathy", 2)])
def test_one_of_other_examples_is_another(model, other, shared, monkeypatch, trait, n_examples):
    read_written_vector(model, "evil", 2, shared)
    forbid_reading(monkeypatch)
    with pytest.raises(AssertionError, match="read again"):
        read_written_vector(other, trait, n_examples, shared)


def test_a_damaged_one_is_read_anew(model, other, shared):
    read = read_written_vector(model, "evil", 2, shared)
    (path,) = shared.folder.glob("*/written.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(read_written_vector(other, "evil", 2, shared).directions, read.directions)
    assert torch.equal(pl.PersonaVector.load(path).directions, read.directions)


def test_without_a_place_it_is_read_once_a_model(model, monkeypatch):
    read = read_written_vector(model, "evil", 2)
    forbid_reading(monkeypatch)
    assert read_written_vector(model, "evil", 2) is read
