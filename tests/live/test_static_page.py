import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.live.payload import pack_conversation, pack_tokens
from persona_lens.live.static_page import read_module
from tests.live.jupyter import open_page

HOSTILE = '</script><img src=x onerror="window.attacked=true"><!--'
TEXTS = ("<|start|>", "Hi", "", "é", "\n", HOSTILE, " & so", " on", " it", " goes")
TURNS = (-1, 0, 0, 0, -1, 1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def read(tiny_model):
    info = pl.describe_model(tiny_model)
    numbers = torch.randn(3, 2, 3, len(TEXTS), generator=torch.Generator().manual_seed(0)) * 10
    steered = torch.tensor([turn == 1 for turn in TURNS])
    known = torch.tensor([[0.5, 1.0, 2.0], [float("nan")] * 3])
    return pl.live.ReadConversation(
        model=info,
        traits=("loud", "<b>kind</b>"),
        roles=("user", "assistant"),
        variants=tuple(
            pl.live.ReadVariant(coefficient, TEXTS, TURNS, steered & (coefficient != 0), one)
            for coefficient, one in zip((-1.0, 0.0, 1.5), numbers, strict=True)
        ),
        along="loud",
        layer=1,
        ordinary_mean=known,
        ordinary_std=known,
        thresholds=known + 3,
    )


def decode(packed, shape):
    halves = np.frombuffer(base64.b64decode(packed["projections"]), "<f2").astype("float32")
    return torch.tensor(halves * packed["scale"]).reshape(shape).permute(1, 2, 0)


def test_packed_projections_are_the_record_s_to_three_digits(read):
    variant = read.variants[2]
    packed = pack_conversation(read)["variants"][2]
    torch.testing.assert_close(decode(packed, (10, 2, 3)), variant.projections, rtol=1e-3, atol=1e-3)
    assert packed["steered"] == "0000011111"


def test_numbers_beyond_half_precision_are_scaled_and_those_unknown_stay_so():
    projections = torch.tensor([[[1e6, -2.0, float("nan")]]])
    packed = pack_tokens(["a", "b", "c"], [0, 0, 0], torch.zeros(3, dtype=torch.bool), projections)
    found = decode(packed, (3, 1, 1))
    torch.testing.assert_close(found, projections, rtol=1e-3, atol=1e-2, equal_nan=True)


def test_what_is_not_known_is_null_and_the_payload_is_json(read):
    packed = json.loads(json.dumps(pack_conversation(read), allow_nan=False))
    assert packed["mean"] == [[0.5, 1.0, 2.0], [None] * 3]


def test_no_text_leaves_the_script_or_the_table_that_it_stands_in(read):
    page = read._repr_html_()
    assert page.count("</script>") == 2  # its own
    assert "<img" not in page
    assert "<b>" not in page
    (packed,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert json.loads(packed)["variants"][0]["texts"] == list(TEXTS)


def test_the_module_is_small_needs_nothing_and_reads_no_text_as_html():
    module = read_module()
    assert len(module.encode()) < 50_000
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bimport\b|</script", module
    )


@pytest.mark.slow
def test_the_page_works_in_a_browser_without_a_kernel(read, tmp_path):
    """Everything on one page, as opening a browser takes longest."""
    read.write_html(tmp_path / "page.html")
    dark = f'<meta charset="utf-8"><body style="background:#111">{read._repr_html_()}'
    (tmp_path / "dark.html").write_text(dark)
    with open_page() as (page, wrong):
        page.goto((tmp_path / "page.html").as_uri())
        panels = page.locator(".panel")
        assert panels.locator("h4").all_text_contents() == ["Unsteered", "Coefficient 1.50"]
        tokens = panels.nth(1).locator(".token")
        shown = ["Hi", "·", "é", HOSTILE, " & so", " on", " it", " goes"]  # without the template's
        assert tokens.all_text_contents() == shown
        assert page.evaluate("window.attacked") is None
        assert page.locator("img").count() == 0

        def colours():
            return tokens.evaluate_all("all => all.map(one => one.style.background)")

        # The layer and the trait choose the numbers.
        first = colours()
        layer = page.get_by_label("Layer")
        layer.press("ArrowRight")
        assert colours() != first
        assert float(read.variants[2].projections[0, 2, 8]) == pytest.approx(read_label(tokens.nth(6)), abs=0.01)
        layer.press("ArrowLeft")
        assert colours() == first
        page.get_by_label("<b>kind</b>").check()
        assert float(read.variants[2].projections[1, 1, 8]) == pytest.approx(read_label(tokens.nth(6)), abs=0.01)
        page.get_by_label("loud").check()

        # Hovering and the keys give numbers.
        readout = page.locator(".readout")
        tokens.nth(4).hover()
        assert "token 6, assistant, layer 1, steered" in readout.inner_text()
        value = float(read.variants[2].projections[0, 1, 6])
        distance = f"{(value - 1.0) / 1.0:.2f} \N{GREEK SMALL LETTER SIGMA}".replace("-", "−")
        assert distance in readout.inner_text()
        tokens.nth(0).focus()
        page.keyboard.press("ArrowRight")
        assert tokens.nth(1).evaluate("one => one === one.getRootNode().activeElement")
        assert "part of a character token 2" in readout.inner_text()
        page.keyboard.press("End")
        assert tokens.nth(7).evaluate("one => one === one.getRootNode().activeElement")
        assert tokens.nth(7).evaluate("one => getComputedStyle(one).borderBottomColor") == "rgb(34, 34, 34)"

        # Coefficients that were sampled, the template's tokens, and the table of numbers.
        page.get_by_role("slider", name="Coefficient").press("Home")
        assert panels.locator("h4").all_text_contents() == ["Unsteered", "Coefficient −1.00"]
        page.get_by_label("chat template's tokens").check()
        assert tokens.count() == len(TEXTS)
        page.locator("summary").click()
        row = page.locator("details table").nth(1).locator("tbody tr").nth(7)
        row.wait_for()  # the table is filled once it is open
        cells = row.locator("td").all_text_contents()
        numbers = read.variants[0].projections[:, 1, 7].tolist()
        assert cells[:2] == [" on", "assistant"]
        assert [float(cell.replace("−", "-")) for cell in cells[2:4]] == pytest.approx(numbers, abs=0.01)
        assert not page.locator(".root").evaluate("one => one.classList.contains('dark')")
        page.goto((tmp_path / "dark.html").as_uri())
        page.locator(".root.dark").wait_for()
        assert not wrong


def test_the_guides_example_is_drawn_by_the_module_as_it_is():
    page = Path(__file__).parents[2] / "docs" / "howto" / "watch_example.html"
    assert f'<script type="module">{read_module()}\nshowPages(' in page.read_text(encoding="utf-8")


def read_label(token):
    """The projection that a screen reader hears."""
    said = re.search(r"projection (−?[\d.]+)", token.get_attribute("aria-label"))[1]
    return float(said.replace("−", "-"))
