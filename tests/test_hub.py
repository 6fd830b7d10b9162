"""What is shared on the hub comes back the same, with a card; what goes wrong is one error, without the token."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest
import torch
import yaml
from huggingface_hub import constants

import persona_lens as pl
from persona_lens.errors import ApiError, FileFormatError, InvalidArgumentError, TraitFormatError
from persona_lens.hub import escape
from persona_lens.monitoring.ordinary_responses import OrdinaryResponses
from persona_lens.monitoring.readings import TraitMonitor
from tests.loopback_hub import serve_hub
from tests.small_trait import tiny_trait
from tests.vectors.exchange.files import D_MODEL, INFO, N_LAYERS

# The hub's own client, where it puts large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
TOKEN = "hf_secret"
HOSTILE = "calm | <script>alert(1)</script> [x](javascript:y)\n# head\n```"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serve_hub(TOKEN) as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store is no part of the hub
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        files = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def make_vector(trait="calm"):
    rows = torch.randn(N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(0))
    rows[0] = 0
    model = dataclasses.replace(INFO, name="someone/tiny-model")
    return pl.PersonaVector(trait, model, {"response_mean": rows}, provenance={"note": HOSTILE}, absent=(0,))


def make_monitor():
    unit = torch.nn.functional.normalize(torch.ones(D_MODEL), dim=0)
    one = TraitMonitor("calm", 1, "response_mean", unit, (0.0, 0.5, 1.0), (0.9,), None, None)
    return pl.PersonaMonitor(INFO, (one,), {"seed": 0})


def test_a_vector_a_trait_and_a_monitor_come_back_the_same(hub):
    vector, trait, monitor = make_vector(), tiny_trait(), make_monitor()
    first = vector.push_to_hub("me/calm", private=True)
    second = (vector * 2.0).push_to_hub("me/calm")
    again = pl.PersonaVector.from_hub("me/calm", revision=first)
    assert (again.digest, again.absent, again.model) == (vector.digest, (0,), vector.model)
    assert pl.PersonaVector.from_hub("me/calm").digest == (vector * 2.0).digest
    assert first != second
    assert len(hub.repos["me/calm"]) == 2  # file and card are one commit
    assert hub.private["me/calm"] in (True, "private")
    assert any(asked.startswith("PUT /lfs/") for asked in hub.asked)
    trait.push_to_hub("trait")  # a name alone is put under the token's owner
    assert pl.Trait.from_hub("me/trait") == trait
    monitor.push_to_hub("me/monitor")
    assert pl.PersonaMonitor.from_hub("me/monitor").to_json() == monitor.to_json()


def test_a_card_says_how_to_load_and_shows_texts_as_texts(hub):
    make_vector(HOSTILE).push_to_hub("me/calm")
    card = hub.repos["me/calm"][-1][1]["README.md"].decode()
    _, head, page = card.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == "someone/tiny-model"
    assert yaml.safe_load(head)["library_name"] == "persona-lens"
    assert 'pl.PersonaVector.from_hub("me/calm")' in page
    before, provenance = page.split("## Provenance")
    assert "<script>" not in before
    assert "](javascript" not in before
    assert "\n# head" not in card
    assert before.count("```") == 2
    assert [line for line in provenance.splitlines() if line.startswith("```")] == ["```json", "```"]
    assert escape("a\n\n|b") == r"a \|b"


def test_a_monitors_card_names_its_thresholds_before_and_while_it_answers(hub):
    monitor = make_monitor()
    monitor.push_to_hub("me/silent")
    assert "no ordinary responses were measured" in hub.repos["me/silent"][-1][1]["README.md"].decode()
    known = OrdinaryResponses((0.0, 1.0), (2.0, 4.0), n_first=8, max_new_tokens=64, n_tokens=2)
    spoken = dataclasses.replace(monitor, traits=(dataclasses.replace(monitor.traits[0], responses=known),))
    spoken.push_to_hub("me/spoken")
    card = hub.repos["me/spoken"][-1][1]["README.md"].decode()
    assert "calm, while it answers" in card
    assert "running mean above 3.80" in card


def test_a_folders_path_is_no_models_name_on_the_hub(hub):
    dataclasses.replace(make_vector(), model=dataclasses.replace(INFO, name="/home/me/model")).push_to_hub("me/calm")
    assert "base_model" not in hub.repos["me/calm"][-1][1]["README.md"].decode()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pl.PersonaVector.from_hub("me/nowhere"), "knows none"),
        (lambda: pl.PersonaVector.from_hub("me/calm", revision="f" * 40), "knows none"),
        (lambda: pl.Trait.from_hub("me/calm"), r"with the file trait\.json"),
    ],
)
def test_what_is_not_on_the_hub_is_said_so(hub, call, says):
    make_vector().push_to_hub("me/calm")
    with pytest.raises(ApiError, match=says):
        call()


def test_a_wrong_token_is_refused_without_being_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ApiError, match=r"refused \(401\).*HF_TOKEN") as refused:
        make_vector().push_to_hub("me/calm")
    assert "hf_wrong" not in str(refused.value)
    assert not hub.repos


def test_a_file_of_another_kind_is_refused_by_name(hub):
    make_vector().push_to_hub("me/calm")
    hub.commit("me/calm", {"vector.safetensors": b"{}", "trait.json": b"[]", "monitor.json": b"{}"})
    with pytest.raises(FileFormatError):
        pl.PersonaVector.from_hub("me/calm")
    with pytest.raises(TraitFormatError):
        pl.Trait.from_hub("me/calm")
    with pytest.raises(FileFormatError):
        pl.PersonaMonitor.from_hub("me/calm")


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "-/é", "x" * 200, "a/..", "hf://x"])
def test_a_name_that_no_repository_has_is_refused_before_anything_is_asked(hub, name):
    with pytest.raises(InvalidArgumentError, match="repo_id"):
        make_vector().push_to_hub(name)
    with pytest.raises(InvalidArgumentError, match="repo_id"):
        pl.PersonaVector.from_hub(name)
    assert not hub.asked


def test_a_hub_that_is_out_of_reach_is_asked_once(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(ApiError, match="out of reach"):
        pl.Trait.from_hub("me/calm")
    assert time.monotonic() - begun < 8


def test_offline_nothing_is_asked(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ApiError, match="HF_HUB_OFFLINE"):
        pl.PersonaVector.from_hub("me/calm")
    assert not hub.asked


@pytest.mark.slow
def test_the_address_and_the_token_come_from_the_environment(tmp_path):
    tiny_trait().to_json(tmp_path / "trait.json")
    code = (
        "import sys\nfrom persona_lens.traits.trait import Trait\ntrait = Trait.from_json(sys.argv[1])\n"
        "revision = trait.push_to_hub('me/trait')\nassert Trait.from_hub('me/trait', revision=revision) == trait\n"
    )
    with serve_hub(TOKEN) as served:
        where = {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        command = [sys.executable, "-c", code, str(tmp_path / "trait.json")]
        done = subprocess.run(command, env=os.environ | where, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert list(served.repos) == ["me/trait"]
    assert TOKEN not in done.stdout + done.stderr
