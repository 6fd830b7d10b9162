"""A local HTTP server that speaks enough of Anthropic's Messages and Message Batches APIs for the real client.

Whatever else is posted is answered as well, with what ``answer`` says: so it serves other APIs' clients, too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DROP = object()
"""Return this from ``answer`` to close the connection without an answer."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: a status, a body (a dict is sent as JSON, bytes as they are) and more or other headers."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


def message(text: str, *, stop_reason: str = "end_turn", model: str = "claude-test") -> dict[str, Any]:
    """A Message object with one text block."""
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": text}], "stop_reason": stop_reason, "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 2},
    }  # fmt: skip


def error(status: int, kind: str, **headers: str) -> Answer:
    """An API error, e.g. ``error(429, "rate_limit_error", **{"retry-after": "0.01"})``."""
    return Answer(status, {"type": "error", "error": {"type": kind, "message": f"a {kind}"}}, headers)


class AnthropicServer:
    """What a test sets up and looks at.

    ``answer`` maps the body of POST /v1/messages to a text, an object (sent as JSON), an Answer or DROP.
    ``batch_result`` maps each request of a batch (``{"custom_id", "params"}``) to its ``result`` object, e.g.
    ``{"type": "succeeded", "message": ...}``, ``{"type": "expired"}``, ``{"type": "errored", "error": {...}}``. A batch
    has ended after ``polls_until_end`` looks at it. ``requests`` holds (method, path, headers, body) of all that came.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Any] = lambda body: "50"
        self.batch_result: Callable[[dict[str, Any]], dict[str, Any]] = lambda request: {
            "type": "succeeded",
            "message": message("50"),
        }
        self.polls_until_end = 0
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.batches: dict[str, dict[str, Any]] = {}
        self.concurrent = 0
        self.most_concurrent = 0
        self.lock = threading.Lock()
        self.url = ""

    def paths(self, method: str = "POST") -> list[str]:
        """Paths asked for with a method."""
        return [path for asked, path, _, _ in self.requests if asked == method]

    def describe_batch(self, batch_id: str) -> dict[str, Any]:
        batch = self.batches[batch_id]
        ended = batch["looks"] >= self.polls_until_end
        count = len(batch["requests"])
        return {
            "id": batch_id, "type": "message_batch", "processing_status": "ended" if ended else "in_progress",
            "request_counts": {"processing": 0 if ended else count, "succeeded": count if ended else 0,
                               "errored": 0, "canceled": 0, "expired": 0},
            "ended_at": "2026-01-01T00:00:00Z" if ended else None, "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z", "archived_at": None, "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch_id}/results" if ended else None,
        }  # fmt: skip


@contextmanager
def serve():
    """Run the server on a free loopback port."""
    state = AnthropicServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, answer):
            if answer is DROP:
                self.close_connection = True
                self.connection.close()
                return
            if isinstance(answer, str):
                answer = Answer(200, message(answer))
            if isinstance(answer, dict):
                answer = Answer(200, answer)
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            ordinary = {"content-type": "application/json", "content-length": str(len(body))}
            for name, value in (ordinary | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with state.lock:
                state.requests.append(("POST", self.path, dict(self.headers), body))
                state.concurrent += 1
                state.most_concurrent = max(state.most_concurrent, state.concurrent)
            try:
                if self.path.startswith("/v1/messages/batches"):
                    with state.lock:
                        batch_id = f"msgbatch_{len(state.batches)}"
                        state.batches[batch_id] = {"requests": body["requests"], "looks": 0}
                    self.reply(state.describe_batch(batch_id))
                else:
                    self.reply(state.answer(body))
            finally:
                with state.lock:
                    state.concurrent -= 1

        def do_GET(self):
            state.requests.append(("GET", self.path, dict(self.headers), None))
            batch_id = self.path.split("/")[4].split("?")[0]
            if batch_id not in state.batches:
                self.reply(error(404, "not_found_error"))
            elif self.path.rstrip("/").endswith("/results"):
                rows = [
                    {"custom_id": request["custom_id"], "result": state.batch_result(request)}
                    for request in reversed(state.batches[batch_id]["requests"])  # the API promises no order
                ]
                self.reply(Answer(200, "".join(json.dumps(row) + "\n" for row in rows).encode()))
            else:
                described = state.describe_batch(batch_id)
                state.batches[batch_id]["looks"] += 1
                self.reply(described)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)  # looks for shutdown often
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
