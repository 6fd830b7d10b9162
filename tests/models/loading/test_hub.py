"""A hub that is out of reach: found out once, and soon."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

import persona_lens as pl
from persona_lens.errors import ModelNotFoundError


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_hub_that_is_out_of_reach_is_asked_once(online, capfd, name):
    online("http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="out of reach"):
        pl.load_model(name)
    assert time.monotonic() - begun < 8
    assert "Retry" not in "".join(capfd.readouterr())


def test_a_hub_that_answers_is_asked(online):
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        from persona_lens.hub import reach

        online(f"http://127.0.0.1:{server.server_port}")
        assert reach(constants.ENDPOINT)
        assert asked == ["/"]
    finally:
        server.shutdown()
        server.server_close()


def test_told_to_stay_offline_nothing_is_asked(monkeypatch):
    from persona_lens.hub import reach

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://never.invalid")
    assert not reach(constants.ENDPOINT)
