"""What fuzzing found, and the files that it begins with."""

import pytest

from tests.fuzz.fuzz_conversations import FINDS, KINDS, check_reading, make_seeds

FOUND = sorted(path for path in FINDS.glob("*/*"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seeds_are_read_whole_and_cut_anywhere(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    for seed in make_seeds(kind):
        for n_bytes in {*range(0, len(seed), max(1, len(seed) // 40)), len(seed)}:
            path.write_bytes(seed[:n_bytes])
            check_reading(path)


@pytest.mark.parametrize("find", FOUND, ids=[f"{path.parent.name}-{path.name}" for path in FOUND])
def test_what_fuzzing_found_is_read_or_refused(tmp_path, find):
    path = tmp_path / f"rows.{find.parent.name}"
    path.write_bytes(find.read_bytes())
    check_reading(path)
