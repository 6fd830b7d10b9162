"""How a command ends, seen from outside: real processes, real signals, real pipes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persona_lens.ending import run_to_end
from persona_lens.errors import InvalidArgumentError
from tests.small_trait import tiny_trait

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
GO_ON = "The same command goes on."

WORKING = f"""
import sys, time
from pathlib import Path
from persona_lens.ending import run_to_end
from persona_lens.files import write_atomically

def work():
    with write_atomically(Path(sys.argv[1])) as file:
        file.write(b"half")
        print("working", flush=True)
        time.sleep(30)

sys.exit(run_to_end(work, {GO_ON!r}))
"""


def heed_interrupts():
    """As a program of the foreground does; one that a shell began with `&` is told to ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status", "word"), [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "SIGTERM")])
def test_a_signal_ends_it_quietly_with_its_status_and_leaves_nothing_half_written(tmp_path, number, status, word):
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=ENVIRONMENT, preexec_fn=heed_interrupts,
    )  # fmt: skip
    assert process.stdout.readline() == "working\n"
    process.send_signal(getattr(signal, number))
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert out == ""
    assert len(err.splitlines()) == 1
    assert word in err
    assert GO_ON in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "code",
    ["print('x' * 100); sys.stdout.flush(); time.sleep(0.3); print('y' * 1_000_000)", "time.sleep(0.3); print('z')"],
)
def test_a_reader_that_goes_away_is_no_error_to_speak_of(code):
    whole = f"import sys, time\nfrom persona_lens.ending import run_to_end\nwork = lambda: exec({code!r})\n"
    program = [sys.executable, "-c", whole + "sys.exit(run_to_end(work, ''))"]
    reader, writer = os.pipe()
    process = subprocess.Popen(program, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("command", [["traits"], ["traits", "--json"], ["--help"]])
def test_the_command_is_quiet_when_its_reader_goes_away(command):
    program = Path(sys.executable).with_name("persona-lens")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([program, *command], stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidArgumentError.of("--x", "be 1", 2), "`--x` must be 1. Got 2."),
        (FileNotFoundError("`path` must name an existing file."), "`path` must name an existing file."),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "Permission denied: 'a/b'."),
        (OSError(errno.ENOSPC, "No space left on device"), f"No space left on device. {GO_ON}"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "Invalid cross-device link: 'a' -> 'b'."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 500), f"File name too long: '{'x' * 200}...'."),
        (ImportError("Install it."), "Install it."),
    ],
)
def test_what_can_be_foreseen_is_one_line_and_status_2(capsys, error, said):
    assert run_to_end(lambda: fail(error), GO_ON) == 2
    assert capsys.readouterr() == ("", f"{said}\n")


def test_what_cannot_be_foreseen_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_to_end(lambda: 1 // 0, GO_ON)


def test_the_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    assert run_to_end(lambda: 3, GO_ON) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def wait_for(found, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "status"),  # what a signal does is the same for all, and shown for both above
    [("extract", signal.SIGINT, 130), ("sweep", signal.SIGTERM, 143), ("script", signal.SIGINT, 130)],
)
def test_long_work_that_is_broken_off_keeps_its_shards_and_the_same_command_goes_on(
    tmp_path, tiny_folder, what, number, status
):
    """A command that ends at the first signal after its first shard, then runs again and computes only the others."""
    tiny_trait().to_json(tmp_path / "loud.json")
    where = ["--trait", "loud.json", "--model", tiny_folder("llama"), "--out", "out.safetensors"]
    program = [str(Path(sys.executable).with_name("persona-lens")), what, *where]
    kept = "out.safetensors.unfinished"
    if what == "sweep":
        program, kept = [*program[:-1], "out"], "out/unfinished"
    if what == "script":
        program = [sys.executable, str(ROOT / "experiments" / "layer_sweep.py"), *where[:-1], "out", "--runs", "runs"]
        kept = "runs"

    def start():
        return subprocess.Popen(
            program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
            preexec_fn=heed_interrupts,
        )  # fmt: skip

    process = start()
    wait_for(lambda: list((tmp_path / kept).rglob("*.safetensors")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in err
    assert "the same command goes on where it was" in err
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / kept).rglob("*.safetensors")}
    assert times
    if what != "script":  # which would take minutes
        again = start()
        _, err = again.communicate(timeout=500)
        assert again.returncode in (0, 2), err  # a tiny random model may show no trait
        assert again.returncode == 2 or not (tmp_path / kept).exists()
