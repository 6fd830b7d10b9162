"""The documentation site: it builds strictly, its links hold, its code calls what there is, and nothing is left out."""

import ast
import doctest
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import warnings
import zlib
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import yaml

import persona_lens as pl
from tests.backends import BACKENDS
from tests.interventions.test_steering import make_vector

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
ERRORS = sorted(
    name
    for name, value in vars(pl.errors).items()
    if inspect.isclass(value) and issubclass(value, pl.errors.PersonaLensError | pl.errors.PersonaLensWarning)
)
FENCED = re.compile(r"```.*?```", re.DOTALL)


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def read_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def list_pages(nav):
    """The pages of mkdocs.yml's nav, however deep."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in list_pages(part)]


WITH_CODE = [path for path in PAGES if read_blocks(path)]


# Built ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a link, an anchor or a reference that leads nowhere stops it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: it hides warnings from the count that --strict goes by.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read_inventory(site):
    """The names that the reference has, by which other projects link to it."""
    compressed = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]
    return {line.split(" ")[0] for line in zlib.decompress(compressed).decode().splitlines()}


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    known = read_inventory(site)
    public = {name: getattr(pl, name) for name in pl.__all__ if not name.startswith("_")}
    for room in [name for name, value in public.items() if isinstance(value, ModuleType)]:
        module = getattr(pl, room)
        public |= {f"{room}.{name}": getattr(module, name) for name in getattr(module, "__all__", ())}
    missing = []
    for name, value in public.items():
        defined = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        if not {f"persona_lens.{name}", defined} & known:
            missing.append(name)
    assert not missing


@pytest.mark.slow
def test_every_page_of_the_site_is_in_llms_txt_with_a_line_about_it(site):
    lines = (site / "llms.txt").read_text().splitlines()
    listed = {re.search(r"\]\(([^)]+)\)", line)[1]: line for line in lines if line.startswith("- [")}
    pages = list_pages(yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"])
    assert list(listed) == [re.sub(r"\.(md|ipynb)$", ".html", page) for page in pages]
    assert not [line for line in listed.values() if len(line.partition("): ")[2]) < 20]


@pytest.mark.slow
def test_figures_and_notebooks_are_on_the_site(site):
    for pattern in ("figures/*.png", "notebooks/*.ipynb"):
        for path in ROOT.glob(pattern):
            assert (site / path.relative_to(ROOT)).with_suffix(".png" if path.suffix == ".png" else ".html").exists()
    assert "outputs" not in (site / "notebooks" / "01_tour.html").read_text()[:200]
    assert "data:image/png;base64" in (site / "notebooks" / "01_tour.html").read_text()


@pytest.mark.slow
def test_no_page_of_the_reference_shows_a_role_of_another_markup(site):
    for path in (site / "reference").glob("*.html"):
        assert not re.findall(r":(?:func|class|meth|attr|data):", path.read_text()), path.name


def test_what_the_hooks_say_of_themselves_holds():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "mkdocs_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    found = doctest.testmod(hooks)
    assert found.attempted >= 3
    assert found.failed == 0


# Links, as a code host follows them -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_link_to_a_file_leads_to_one(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", FENCED.sub("", path.read_text()))
    for link in links:
        if not link.startswith(("https://", "mailto:")):
            assert (path.parent / link).exists(), link


def test_every_page_is_in_the_navigation():
    nav = list_pages(yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"])
    assert sorted(nav) == sorted(set(nav))
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} <= set(nav)


# Code on pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_name_of_the_package_on_a_page_exists(path):
    for name in set(re.findall(r"\bpl\.([A-Za-z_][\w.]*\w)", path.read_text())):
        attrgetter(name)(pl)


@pytest.mark.parametrize("path", WITH_CODE, ids=page_id)
def test_code_on_a_page_calls_with_arguments_that_there_are(path):
    nodes = [node for block in read_blocks(path) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    calls = [node for node in nodes if re.fullmatch(r"pl\.[\w.]+", ast.unparse(node.func))]
    assert calls
    for node in calls:
        called = attrgetter(ast.unparse(node.func).removeprefix("pl."))(pl)
        inspect.signature(called).bind(*node.args, **{one.arg: one.value for one in node.keywords})


def read_marked(path, mark):
    return re.search(rf"<!-- {mark} -->\n```python\n(.*?)```\n<!-- /{mark} -->", path.read_text(), re.DOTALL)[1]


def test_a_judge_is_added_as_the_page_says(capsys):
    exec(read_marked(DOCS / "developing" / "adding.md", "judge"), {"__name__": "page"})
    assert capsys.readouterr().out == "not valid\n"


@pytest.mark.slow
def test_an_operation_is_added_as_the_page_says():
    """In a process of its own, as a user would run it."""
    code = read_marked(DOCS / "developing" / "adding.md", "operation")
    code += "h = torch.randn(2, 8)\none = reflected.at(3)[0]\nprint((one(one(h)) - h).norm() < 1e-5)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "Intervention(layer 3: Reflect)\ntensor(True)\n", done.stderr


def test_an_estimator_is_added_as_the_page_says(tiny_model):
    names = {"__name__": "page"}
    exec(read_marked(DOCS / "developing" / "adding.md", "estimator"), names)
    examples = [
        pl.traits.WrittenExample(f"{question}?", overt=f"loud {question}", opposite="soft") for question in "abc"
    ]
    found = names["read_median_vector"](tiny_model, "loud", examples)
    mean = pl.read_persona_vector(tiny_model, "loud", examples)
    assert found.provenance["estimator"]["kind"] == "MedianDifference"
    assert (pl.cosine(found.directions, mean.directions) > 0.5).all()
    assert (found.norms <= mean.norms * (1 + 1e-4)).all()  # a step along it is the mean's, as it sees it


# Errors -----------------------------------------------------------------------------------------------------------


def test_every_error_has_its_page_and_every_page_its_error():
    pages = {path.stem for path in (DOCS / "errors").glob("*.md")} - {"index"}
    assert pages == set(ERRORS)
    index = (DOCS / "errors" / "index.md").read_text()
    assert not [name for name in ERRORS if f"[{name}]({name}.md)" not in index]


@pytest.mark.parametrize("name", ERRORS)
def test_the_example_of_an_error_raises_it_with_the_message_that_the_page_shows(
    name, embedded_model, tiny_folder, tmp_path, monkeypatch, capsys
):
    if name in ("HooksPresentError", "UnsupportedModelError") and "hooked" not in BACKENDS:
        pytest.skip("The page shows what a HookedTransformer says, which TransformerLens 4 has not.")
    monkeypatch.chdir(tmp_path)
    page = DOCS / "errors" / f"{name}.md"
    (code,) = read_blocks(page)
    # Training is tried on a tiny model: what is said does not depend on it.
    code = code.replace("smollm2-135m-instruct", tiny_folder("llama"))
    names = {"__name__": "page", "model": embedded_model, "vector": make_vector(embedded_model, trait="formality")}
    with patch.dict(os.environ), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            exec(code, names)
            raised = next(one.message for one in seen if isinstance(one.message, pl.errors.PersonaLensWarning))
        except (pl.errors.PersonaLensError, pl.errors.PersonaLensWarning) as error:
            raised = error
    assert isinstance(raised, getattr(pl.errors, name))
    shown = re.search(r"```text\n(.*?)\n```", page.read_text(), re.DOTALL)[1]
    assert shown == f"{type(raised).__name__}: {raised}"


# The gallery ------------------------------------------------------------------------------------------------------


def test_the_gallery_has_every_figure_with_a_finding():
    page = (DOCS / "gallery.md").read_text()
    findings = {name: finding for finding, name in re.findall(r"^(.*) \(`(\w+)`\)$", page, re.MULTILINE)}
    assert findings.keys() == {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert min(map(len, findings.values())) > 20
