"""A page that is being served for tests, and requests to it."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from urllib.parse import urlsplit

import torch

import persona_lens as pl
from tests.tiny import save_tiny

LAYERS = {"loud": 1, "calm": 2}


def load_roomy(folder):
    """A tiny model with room for a chat, byte by byte."""
    return pl.load_model(save_tiny(folder, "llama", n_ctx=1024), dtype="float32", device="cpu")


def make_vectors(model):
    """Random directions, long enough to change what is said."""
    info = pl.describe_model(model)
    found = {}
    for seed, trait in enumerate(LAYERS):
        directions = 5 * torch.randn(3, 48, generator=torch.Generator().manual_seed(seed))
        found[trait] = pl.PersonaVector(trait, info, {"response_mean": directions})
    return found


def make_monitor(model, vectors):
    """One with few ordinary prompts."""
    ordinary = [[{"role": "user", "content": letter * 5}] for letter in "abcdefghij"]
    return pl.PersonaMonitor.calibrate(
        model, vectors, LAYERS, ordinary=ordinary, responses=pl.Sampling(max_new_tokens=12)
    )


def ask_server(app, method, path, content=None, headers=None):
    """Send a request; return status, headers and body."""
    parts = urlsplit(app.url)
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    usual = {} if content is None else {"Content-Type": "application/json"}
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)) as connection:
        connection.request(method, path, body, {**usual, **(headers or {})})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


def open_chat(app):
    """Begin a chat; return its path."""
    status, _, body = ask_server(app, "POST", "/api/chats", {})
    assert status == 200
    return f"/api/chats/{json.loads(body)['chat']}"


def answer(app, chat, **content):
    """Ask something; return the events."""
    status, _, body = ask_server(app, "POST", f"{chat}/answers", {"max_new_tokens": 6, "temperature": 0, **content})
    assert status == 200, body
    return [json.loads(line) for line in body.splitlines()]


def answer_and_stop(app, chat, **content):
    """Ask something, and stop it once a token has come; return the events."""
    parts = urlsplit(app.url)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)) as connection:
        body = json.dumps({"max_new_tokens": 900, "temperature": 0, **content})
        connection.request("POST", f"{chat}/answers", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        events = [json.loads(response.readline()) for _ in range(2)]
        assert ask_server(app, "POST", f"{chat}/stop", {})[0] == 200
        return [*events, *(json.loads(line) for line in response)]


def join(events):
    """The answer's text."""
    return "".join(one["text"] for one in events if one["kind"] == "token")
