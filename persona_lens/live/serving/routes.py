"""What the page's server answers: the page itself, a chat's answers as they come, and its exports."""

from __future__ import annotations

import html
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from persona_lens.checksums import hash_json
from persona_lens.errors import InvalidArgumentError, ModelBusyError, PersonaLensError
from persona_lens.live.conversation import ReadConversation
from persona_lens.live.serving.answering import Event, OneAtATime, Question, explain
from persona_lens.live.serving.chat import Chats
from persona_lens.live.serving.guard import Guard, Hosts, Server
from persona_lens.live.serving.setup import Setup
from persona_lens.live.static_page import write_static

STATIC = Path(__file__).resolve().parents[1] / "static"
_MAX_BODY = 2**20


def make_server(setup: Setup, hosts: Hosts) -> tuple[Server, OneAtATime]:
    """Return the page's server, and what answers on it."""
    chats, answering = Chats(), OneAtATime(setup)

    async def show_page(request: Request) -> Response:
        return FileResponse(STATIC / "app" / "app.html", media_type="text/html; charset=utf-8")

    async def describe(request: Request) -> Response:
        return JSONResponse(setup.describe())

    async def open_chat(request: Request) -> Response:
        await _read_json(request)
        return JSONResponse({"chat": chats.open()})

    async def answer(request: Request) -> Response:
        content = await _read_json(request)
        chat = chats.find(request.path_params["chat"])
        events = answering.begin(chat, Question.of(content, setup))
        return StreamingResponse(_write_lines(events), media_type="application/x-ndjson")

    async def stop(request: Request) -> Response:
        await _read_json(request)
        answering.stop(chats.find(request.path_params["chat"]))
        return JSONResponse({})

    async def export(request: Request) -> Response:
        record = chats.find(request.path_params["chat"]).make_record(setup)
        content = await run_in_threadpool(record.to_json)
        text = json.dumps({**content, "checksum": hash_json(content)}, ensure_ascii=False)
        return _download(text, "application/json", "conversation.json")

    async def export_page(request: Request) -> Response:
        record = chats.find(request.path_params["chat"]).make_record(setup)
        page = await run_in_threadpool(_write_page, record)
        return _download(page, "text/html; charset=utf-8", "conversation.html")

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, PersonaLensError)
        status = 409 if isinstance(error, ModelBusyError) else 400
        return JSONResponse({"error": explain(error)}, status_code=status)

    async def fail(request: Request, error: Exception) -> Response:
        return PlainTextResponse("The server failed; the terminal has the whole report.", status_code=500)

    routes = [
        Route("/", show_page),
        Route("/api/setup", describe),
        Route("/api/chats", open_chat, methods=["POST"]),
        Route("/api/chats/{chat}/answers", answer, methods=["POST"]),
        Route("/api/chats/{chat}/stop", stop, methods=["POST"]),
        Route("/api/chats/{chat}/conversation.json", export),
        Route("/api/chats/{chat}/conversation.html", export_page),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers: Any = {PersonaLensError: refuse, Exception: fail}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts), answering


async def _write_lines(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    async for event in events:
        yield json.dumps(event, ensure_ascii=False) + "\n"


async def _read_json(request: Request) -> Any:
    """Read a request's JSON; another kind of content is what a form of another site could send."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidArgumentError.of("content-type", "be application/json", request.headers.get("content-type"))
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY:
            raise InvalidArgumentError.of("request", f"have at most {_MAX_BODY} bytes", "more")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError.of("request", "be JSON", str(error)) from None


def _write_page(record: ReadConversation) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    name = html.escape(record.model.name)
    title = f"<title>A chat with {name}</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{title}</head>\n<body>{write_static(record)}</body></html>\n'


def _download(text: str, media_type: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type=media_type, headers=headers)
