"""What all tests share. Heavy imports stand in the functions: the process that only hands out tests waits for none."""

import gc
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # read by torch when it is imported; 1 beside other work

import pytest
from hypothesis import settings

settings.register_profile("repository", deadline=None)
settings.load_profile("repository")


def refuse_to_install(event, args):
    """Keep the environment as it is: TransformerLens runs pip by itself for some models that see."""
    told = " ".join(map(str, args[1])).split() if event == "subprocess.Popen" else []
    words = [os.path.basename(word) for word in told]
    if "install" in words and {"pip", "uv"} & set(words):
        raise PermissionError(f"no test installs anything: {words}")


sys.addaudithook(refuse_to_install)


RUNS = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config):
    """Make the folder in which experiment scripts keep unfinished work: one for all processes."""
    if not hasattr(config, "workerinput"):
        config.stash[RUNS] = tempfile.TemporaryDirectory(prefix="runs-of-scripts-")
        os.environ["RUNS_OF_SCRIPTS"] = config.stash[RUNS].name


def pytest_unconfigure(config):
    if RUNS in config.stash:
        config.stash[RUNS].cleanup()


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that the last ones to end are short, whichever process they fall to."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Take all that was imported out of the garbage collector's sight: each full collection passed over it again.

    The trainer and the engine collect after each of their runs, half a second at a time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def own_checks_alone():
    """Without the tests' own run-time type checks, which would come before the package's."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a tiny model of an architecture, made once."""
    from tests.tiny import save_tiny

    made = {}

    def folder(architecture):
        if architecture not in made:
            made[architecture] = save_tiny(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory):
    """A tiny model whose context holds a whole rubric, byte by byte."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("roomy"), "llama", n_ctx=1024)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    import persona_lens as pl

    return pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_bridge(tiny_folder):
    import persona_lens as pl

    return pl.load_model(tiny_folder("llama"), backend="bridge", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def embedded_model():
    import persona_lens as pl

    return pl.load_model(dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def cluster():
    """A real Ray on this machine, of two cores; one for all tests of a process."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else it writes a token into the home folder
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield ray
    ray.shutdown()
