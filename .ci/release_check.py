"""What a release would hand to its users, tried as they would: `make release-check`.

It builds the source distribution and the wheel into dist/, looks at what is in them, installs the wheel into an empty
environment, asks there for the embedded model before its weights are installed, types what the message says, and runs
the README's code. Packages are downloaded (torch among them); nothing is uploaded, and no environment is changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
# What the package reads at run time, beside its code.
DATA = (
    "py.typed",
    "live/static/*.js",
    "live/static/app/*",
    "data/*.json*",
    "data/vectors/*.safetensors",
    "data/judges/*.json",
    "traits/library/*.json",
    "traits/examples/*.jsonl",
    "traits/statements/*.jsonl",
)
MADE = {"PKG-INFO", "METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}  # by the build, not in git

# Runs readme.py and writes what it prints as a list: an answer may have lines of its own.
RUN_README = """
import builtins, json, runpy, sys
printed = []
builtins.print = lambda *parts: printed.append(" ".join(map(str, parts)))
runpy.run_path("readme.py")
json.dump(printed, sys.stdout)
"""


def main() -> None:
    """Build, look, install, run; the first thing that is not as it should be ends it."""
    began = time.monotonic()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        sdist, wheel = build(Path(folder) / "tools", version)
        check_contents(sdist, wheel)
        check_installed(Path(folder), wheel, version)
    if git("status", "--porcelain"):
        say("There are changes that are not committed: commit them, and check again")
    if f"## [{version}] - Unreleased" in (ROOT / "CHANGELOG.md").read_text():
        say(f"CHANGELOG.md has no date for {version} yet: give it one before the tag")
    say(f"{sdist.name} and {wheel.name} can be released ({(time.monotonic() - began) / 60:.0f} minutes)")


def build(tools: Path, version: str) -> tuple[Path, Path]:
    """Build both distributions, the wheel from the source distribution, and let twine read their metadata."""
    say("building")
    make_environment(tools)
    run(tools, "python -m pip install --quiet -c constraints.txt build twine", cwd=ROOT)
    for old in DIST.glob("persona_lens-*"):
        old.unlink()
    run(tools, f"python -m build --outdir {shlex.quote(str(DIST))}", cwd=ROOT)
    sdist, wheel = DIST / f"persona_lens-{version}.tar.gz", DIST / f"persona_lens-{version}-py3-none-any.whl"
    run(tools, f"python -m twine check --strict {shlex.quote(str(sdist))} {shlex.quote(str(wheel))}", cwd=ROOT)
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """Refuse distributions that hold what git does not, or a wheel without its data."""
    tracked = git("ls-files")
    with tarfile.open(sdist) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    for kind, names in (("source distribution", in_sdist), ("wheel", in_wheel)):
        if foreign := list_foreign(names, tracked):
            raise SystemExit(f"The {kind} holds what is not in git: {', '.join(foreign)}")
        say(f"{kind}: {len(names)} files, all of them from git")
    if missing := list_missing(in_wheel, tracked):
        raise SystemExit(f"The wheel lacks: {', '.join(missing)}")


def list_foreign(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Return the files of a distribution that neither git knows nor the build makes."""
    known = set(tracked)
    return [name for name in names if name not in known and PurePosixPath(name).name not in MADE]


def list_missing(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Return the code and data of the package that a wheel lacks, and every kind of data of which there is none."""
    held = set(names)
    wanted = [name for name in tracked if name.startswith("persona_lens/")]
    kinds = [f"persona_lens/{kind}" for kind in DATA]
    return [name for name in wanted if name not in held] + [
        kind for kind in kinds if not any(PurePosixPath(name).match(kind) for name in held)
    ]


def check_installed(folder: Path, wheel: Path, version: str) -> None:
    """Use the wheel in an empty environment, an empty cache and a folder that holds nothing of this one."""
    say("installing the wheel into an empty environment")
    user, elsewhere = folder / "user", folder / "elsewhere"
    make_environment(user)
    elsewhere.mkdir()
    settings = {"PERSONA_LENS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}  # no hub is needed
    constraints = shlex.quote(str(ROOT / "constraints.txt"))
    run(user, f"python -m pip install --quiet -c {constraints} {shlex.quote(str(wheel))}", cwd=elsewhere)
    run(user, "python -m pip check", cwd=elsewhere)
    run(
        user,
        f'python -c \'import importlib.metadata as m; assert m.version("persona-lens") == "{version}"\'',
        elsewhere,
    )
    run(user, "persona-lens --help", elsewhere, settings)

    say("asking for the embedded model, whose weights are not installed")
    failed = run(user, "python -c 'import persona_lens as pl; pl.load_model()'", elsewhere, settings, fails=True)
    command = find_command(failed)
    say(f"the message says: {command}")
    run(user, command, cwd=elsewhere)

    say("running the README's code")
    (elsewhere / "readme.py").write_text(find_readme_code((ROOT / "README.md").read_text()))
    answers = json.loads(run(user, f"python -c {shlex.quote(RUN_README)}", elsewhere, settings))
    say("\n".join(answers))
    if len([answer for answer in answers if answer.strip()]) != 2:
        raise SystemExit(f"The README's code should print two answers. Got {answers}")


def find_command(message: str) -> str:
    """Return what an error message says to type."""
    if not (found := re.search(r"Type: (.+?) \. ", message)):
        raise SystemExit(f"The message does not say what to type to get the model:\n{message}")
    return found.group(1)


def find_readme_code(readme: str) -> str:
    """Return the first Python block of the README's start."""
    start = readme.partition("<!-- start -->")[2].partition("<!-- /start -->")[0]
    if not (found := re.search(r"```python\n(.*?)```", start, re.DOTALL)):
        raise SystemExit("README.md has no Python block between <!-- start --> and <!-- /start -->.")
    return found.group(1)


def make_environment(folder: Path) -> None:
    """Make a virtual environment with pip and nothing else."""
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")


def run(
    environment: Path, command: str, cwd: Path, settings: dict[str, str] | None = None, *, fails: bool = False
) -> str:
    """Run a command as typed in an activated environment; return what it printed, or what it failed with."""
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    program, *arguments = shlex.split(command)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    inherited["PATH"] = os.pathsep.join([str(programs), os.environ["PATH"]])
    done = subprocess.run(
        [str(programs / program), *arguments], cwd=cwd, env=inherited | (settings or {}), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if (done.returncode != 0) is not fails:
        raise SystemExit(f"{command}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stderr if fails else done.stdout


def git(*arguments: str) -> list[str]:
    """Return the lines that a git command prints here."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
