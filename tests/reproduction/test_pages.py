"""Numbers go into pages between their markers, and nowhere else."""

import pytest

from persona_lens.errors import FileFormatError
from persona_lens.reproduction.pages import fill_page


def test_a_part_is_written_anew_and_the_rest_of_the_page_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Ä\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\n<!-- /two -->\nend\n")
    fill_page(page, "one", "new\nlines\n")
    fill_page(page, "two", "2")
    expected = "# Ä\n<!-- one -->\nnew\nlines\n<!-- /one -->\nbetween\n<!-- two -->\n2\n<!-- /two -->\nend\n"
    assert page.read_text() == expected
    fill_page(page, "one", "new\nlines")
    assert page.read_text() == expected


def test_a_page_without_the_markers_is_refused_and_unchanged(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- one -->\n")
    with pytest.raises(FileFormatError, match="/one"):
        fill_page(page, "one", "text")
    assert page.read_text() == "<!-- one -->\n"
