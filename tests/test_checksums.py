import json
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_lens.checksums import FOLDER_RECORD, hash_json, hash_tensors, is_whole, list_changed, seal_folder

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_what_json_makes_of_a_content_has_its_checksum(content):
    assert hash_json(json.loads(json.dumps(content))) == hash_json(content)


@given(JSON, JSON)
def test_contents_that_json_tells_apart_have_other_checksums(one, other):
    alike = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (hash_json(one) == hash_json(other)) == alike


def test_the_order_of_keys_and_what_json_cannot_tell_apart_change_no_checksum():
    assert hash_json({"a": (1, 2), 10: None, 9: "\ud800"}) == hash_json({"9": "\ud800", "10": None, "a": [1, 2]})


def test_tensors_differ_by_name_type_shape_and_every_bit():
    x = torch.arange(6.0).view(2, 3)
    others = [{"y": x}, {"x": x.double()}, {"x": x.view(3, 2)}, {"x": x.view(torch.int32)}, {"x": x + 1e-6}, {}]
    assert len({hash_tensors(tensors) for tensors in [{"x": x}, *others]}) == 7
    assert hash_tensors({"x": x.T.contiguous().T, "y": torch.ones(())}) == hash_tensors({"y": torch.ones(()), "x": x})
    for dtype in (torch.bool, torch.bfloat16, torch.int64):
        assert hash_tensors({"x": torch.ones(3, 2).to(dtype)}) != hash_tensors({"x": torch.ones(2, 3).to(dtype)})
    assert hash_tensors({"x": torch.zeros(0, 2)}) != hash_tensors({"x": torch.zeros(2, 0)})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.bin").write_bytes(bytes(100))
    seal_folder(tmp_path)
    return tmp_path


def test_a_sealed_folder_is_whole_and_sealing_it_again_changes_nothing(folder):
    assert is_whole(folder)
    before = (folder / FOLDER_RECORD).read_bytes()
    seal_folder(folder)
    assert (folder / FOLDER_RECORD).read_bytes() == before


def test_hidden_files_are_the_systems_and_do_not_count(folder):
    (folder / ".DS_Store").write_text("")
    assert is_whole(folder)


DAMAGES = {
    "no file": lambda folder: (folder / "a.txt").unlink(),
    "a file more": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "a folder more": lambda folder: (folder / "more").mkdir(),
    "a folder for a file": lambda folder: ((folder / "a.txt").unlink(), (folder / "a.txt").mkdir()),
    "a bit flipped": lambda folder: (folder / "b.bin").write_bytes(bytes(99) + b"\x01"),
    "a file cut": lambda folder: (folder / "b.bin").write_bytes(bytes(99)),
    "nothing left": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_folder_with_other_files_or_contents_is_not_whole(folder, damage):
    damage(folder)
    assert not is_whole(folder)


RECORDS = ["", "{", "{}", "[]", "null", "3", '"text"', "[" * 100_000, "\x00\xff", '{"a.txt": null}', '{"a.txt": 3}']


@pytest.mark.parametrize("text", RECORDS, ids=range(len(RECORDS)))
def test_a_folder_whose_record_is_damaged_is_not_whole(folder, text):
    (folder / FOLDER_RECORD).write_bytes(text.encode("latin-1"))
    assert not is_whole(folder)
    for path in folder.iterdir():
        if path.name != FOLDER_RECORD:
            path.unlink()
    assert not is_whole(folder)  # an empty record would else make an empty folder whole


def test_a_record_that_names_a_file_outside_of_its_folder_makes_nothing_whole(folder):
    outside = folder.parent / "outside.txt"
    shutil.copy(folder / "a.txt", outside)
    record = json.loads((folder / FOLDER_RECORD).read_text())
    for name in (f"../{outside.name}", str(outside)):
        changed = {key: value for key, value in record.items() if key != "a.txt"} | {name: record["a.txt"]}
        (folder / FOLDER_RECORD).write_text(json.dumps(changed))
        assert not is_whole(folder)
        (folder / "a.txt").unlink(missing_ok=True)
        assert not is_whole(folder)


def test_files_that_changed_or_are_gone_are_named(folder):
    files = json.loads((folder / FOLDER_RECORD).read_text())
    assert list_changed(folder, files) == []
    DAMAGES["no file"](folder)
    DAMAGES["a bit flipped"](folder)
    assert list_changed(folder, files) == ["a.txt", "b.bin"]
    assert list_changed(folder, {os.pardir: "0", "/etc/hostname": "0"}) == [os.pardir, "/etc/hostname"]
