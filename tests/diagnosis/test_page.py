"""The doctor's page shows what there is; its numbers are written by `python -m tests.diagnosis.page`."""

from persona_lens.diagnosis.examination import CHECKS
from tests.diagnosis.broken import BREAKS
from tests.diagnosis.page import PAGE


def test_the_page_explains_every_check_and_shows_it_on_three_models():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for check in CHECKS:
        of_it = [row for row in rows if row.startswith(f"| {check.name} |")]
        assert len(of_it) == 4, check.name
        assert sum("| passed |" in row for row in of_it) == 3, check.name


def test_the_page_shows_each_break_with_the_check_that_found_it():
    text = PAGE.read_text(encoding="utf-8")
    for broken in BREAKS:
        assert f"| {broken.what} | {broken.check} |" in text, "run: python -m tests.diagnosis.page"
    assert "fourteen ways" in text
    assert len(BREAKS) == 14
