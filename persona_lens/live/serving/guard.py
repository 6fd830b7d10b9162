"""Who may speak to the page's server: its own page, and nothing that another site opens in the same browser.

A page of any site can send requests to a server on this machine. Two things tell them apart. The ``Host`` header names
the server as the browser knows it: a foreign name that was made to point here (DNS rebinding) is refused. ``Origin``
and ``Sec-Fetch-Site`` name the page that sent a request: one of another site is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Server = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# Everything comes from this server, and nothing that is written into a page runs.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class Hosts:
    """By which names the server may be called.

    Args:
        names: In lower case, without a port: a tunnel may have another one.
        any_address: Whether any IP address will do, as for a server that listens on all of the machine's. A rebound
            name is a name, so an address cannot be one.
    """

    names: frozenset[str] = LOOPBACK_NAMES
    any_address: bool = False

    def allows(self, host: str) -> bool:
        """Whether a ``Host`` header names the server."""
        name = _split_port(host.lower())
        return name in self.names or (self.any_address and _is_address(name))


def find_refusal(method: str, headers: Iterable[tuple[bytes, bytes]], hosts: Hosts) -> str:
    """Return why a request is refused; nothing if it is not.

    Args:
        method: Of the request.
        headers: Names in lower case.
        hosts: By which names the server may be called.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.decode("latin-1")
        if key in ("host", "origin") and key in found:
            return f"The request has two {key} headers."
        found[key] = value.decode("latin-1")
    host, origin = found.get("host", ""), found.get("origin")
    if not hosts.allows(host):
        return (
            f"This page is not served under the name {host!r}. Open it at the address that persona-lens printed; "
            "`--host NAME` lets it be reached under another."
        )
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return f"A page of {origin!r} may not use this server."
    is_visit = method == "GET" and found.get("sec-fetch-mode") == "navigate"
    if found.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_visit:
        return "A page of another site may not use this server."
    return ""


class Guard:
    """ASGI middleware that refuses foreign requests, and tells the browser to keep the page to itself.

    Args:
        server: What answers the others.
        hosts: By which names the server may be called.
    """

    def __init__(self, server: Server, hosts: Hosts) -> None:
        self._server, self._hosts = server, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what is no HTTP is not answered."""
        if scope["type"] != "http":
            return

        async def send_kept(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        refusal = find_refusal(scope["method"], scope["headers"], self._hosts)
        if not refusal:
            await self._server(scope, receive, send_kept)
            return
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await send_kept({"type": "http.response.start", "status": 403, "headers": plain})
        await send_kept({"type": "http.response.body", "body": refusal.encode()})


def _split_port(host: str) -> str:
    """Return a host's name or address, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
