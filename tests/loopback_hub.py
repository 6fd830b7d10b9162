"""A hub on this machine that speaks what `huggingface_hub` needs to make, fill and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    """Repositories in memory: each commit's files by its hash; large files (safetensors) come by LFS.

    Args:
        token: What must stand in the requests that write.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, object] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        before = self.repos[repo][-1][1] if self.repos[repo] else {}
        oid = hashlib.sha1(f"{repo} {len(self.repos[repo])}".encode()).hexdigest()
        self.repos[repo].append((oid, before | files))
        return oid

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, [])
        return next((one for one in reversed(commits) if revision in ("main", one[0])), None)


@contextmanager
def serve_hub(token: str = "hf_secret") -> Iterator[LoopbackHub]:
    """Serve a hub for a while."""
    hub = LoopbackHub(token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, content: object = None, **headers: str) -> None:
            body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(f"{self.command} {path}")
            if path.startswith("/lfs/"):  # a store beside the hub, as there: its address is the permission
                hub.blobs[path.removeprefix("/lfs/")] = body
                self.answer(200)
            elif self.command in ("GET", "HEAD"):
                self.read(path)
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, {"error": "Invalid credentials"})
            else:
                self.write(path, body)

        def write(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                given = json.loads(body)
                repo = f"{given.get('organization') or 'me'}/{given['name']}"
                known = repo in hub.repos
                hub.repos.setdefault(repo, [])
                hub.private.setdefault(repo, given.get("private", given.get("visibility")))
                self.answer(409 if known else 200, {"url": f"{hub.url}/{repo}", "name": repo})
            elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                files = [
                    {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                     "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]  # fmt: skip
                self.answer(200, {"files": files})
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    one | {"authenticated": True, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                files = {}
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "lfsFile":
                        files[line["value"]["path"]] = hub.blobs[line["value"]["oid"]]
                oid = hub.commit(found[1], files)
                self.answer(200, {"commitUrl": f"{hub.url}/{found[1]}/commit/{oid}", "commitOid": oid})
            else:
                self.answer(404)

        def read(self, path: str) -> None:
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if found is None or found[1] not in hub.repos:
                self.answer(404, **{"X-Error-Code": "RepoNotFound"})
                return
            commit = hub.find(found[1], found[2])
            if commit is None:
                self.answer(404, **{"X-Error-Code": "RevisionNotFound"})
            elif found[3] not in commit[1]:
                self.answer(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit[0]})
            else:
                content = commit[1][found[3]]
                digest = hashlib.sha256(content).hexdigest()
                self.answer(200, content, **{"ETag": f'"{digest}"', "X-Repo-Commit": commit[0]})

        do_GET = do_HEAD = do_POST = do_PUT = handle_request

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
