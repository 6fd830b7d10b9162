"""A page on this machine: chat with a model, steer it by sliders, and see each token's projection as it comes."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from persona_lens.checking import checked
from persona_lens.errors import ApiError, InvalidArgumentError
from persona_lens.live.serving.guard import LOOPBACK_NAMES, Hosts
from persona_lens.live.serving.setup import Setup
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    import uvicorn

    from persona_lens.live.serving.answering import OneAtATime

PORT = 8600
_PATIENCE = 10.0  # seconds for the server to begin, and to end


class RunningApp:
    """A page that is being served, until :meth:`stop` or the end of a ``with`` block.

    Args:
        url: Where it is.
        warning: What to know about who can reach it; empty where only this machine can.
    """

    def __init__(
        self, url: str, warning: str, server: uvicorn.Server, answering: OneAtATime, listener: socket.socket
    ) -> None:
        self.url, self.warning = url, warning
        self._server, self._answering = server, answering
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="persona-lens app", daemon=True
        )
        self._thread.start()
        begun = time.monotonic()
        while not server.started and self._thread.is_alive() and time.monotonic() - begun < _PATIENCE:
            time.sleep(0.01)
        if not server.started:
            is_dead = not self._thread.is_alive()
            server.should_exit = True
            what = "ended before it began" if is_dead else f"has not begun within {_PATIENCE:g} seconds"
            raise ApiError(f"The server of the page at {url} {what}. Try another `port`.")

    def wait(self) -> None:
        """Wait until the page is no longer served."""
        while self._thread.is_alive():
            self._thread.join(1.0)  # not for ever, so that Ctrl-C is heard on every system

    def stop(self) -> None:
        """End the answer under way, and serve the page no longer; the model is free afterwards."""
        self._answering.stop()
        self._server.should_exit = True
        self._thread.join(_PATIENCE)
        self._answering.stop()  # what was begun meanwhile
        self._answering.join(_PATIENCE)

    def __enter__(self) -> RunningApp:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"RunningApp({self.url!r})"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank" rel="noopener">{self.url}</a>'


@checked
def start_app(
    model: HookedModel,
    vectors: Mapping[str, PersonaVector],
    *,
    layers: Mapping[str, int] | None = None,
    monitor: PersonaMonitor | None = None,
    ordinary: Mapping[str, OrdinaryProjections] | None = None,
    sampling: Sampling = Sampling(max_new_tokens=128, temperature=0.7),
    template_arguments: TemplateArguments | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
) -> RunningApp:
    r"""Serve a page on which one chats with a model, with a slider for each trait and tokens coloured by projection.

    An answer is drawn with every slider's vector added at its own layer, :math:`h \leftarrow h + \sum_i c_i v_i`, and
    each token's projection on every unit vector is shown at any layer, after the addition. The server runs on a thread
    of this process. It answers this machine alone unless ``host`` says otherwise, sends nothing elsewhere, and needs no
    network. It takes the extra ``app``.

    Args:
        model: HookedTransformer or TransformerBridge with a tokenizer that has a chat template.
        vectors: By trait.
        layers: Zero-based block index at which each vector is added; the one that it was tried at if left out.
        monitor: Says before each answer whether the prompt is out of the ordinary.
        ordinary: What is ordinary for some of the traits, from :func:`persona_lens.measure_ordinary_projections`:
            their tokens are coloured by their distance from it, others' from the median of the chat.
        sampling: How answers are drawn at first; the page can change length, temperature and seed.
        template_arguments: What the chat template reads besides the messages; they go before those that the model was
            loaded with.
        host: The address to listen on. Any other than a loopback address lets others reach the page: there is no
            password.
        port: Where to listen; 0 takes one that is free.

    Returns:
        The page being served: ``url``, ``wait()``, ``stop()``; a context manager.

    Raises:
        InvalidArgumentError: No vectors, traits that are not among them, a vector of which nothing says where it acts,
            template arguments that the template does not read, or an address or port that cannot be listened on.
        ModelMismatchError: A vector, a monitor or what is ordinary, of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        ImportError: The extra ``app`` is not installed.
        ApiError: The server did not begin.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 3.2 and 3.3.

    Example:
        >>> import persona_lens as pl
        >>> app = pl.live.start_app(pl.load_model(), {"evil": pl.load_vector("evil")})  # doctest: +SKIP
        >>> app.url  # doctest: +SKIP
        'http://127.0.0.1:8600/'
        >>> app.stop()  # doctest: +SKIP
    """
    import_server()
    setup = Setup.of(model, vectors, layers, monitor, ordinary, sampling, template_arguments)
    return serve(setup, host, listen(host, port))


def serve(setup: Setup, host: str, listener: socket.socket) -> RunningApp:
    """Serve a page on a socket that listens; it is closed with the page.

    Raises:
        ImportError: The extra ``app`` is not installed.
        ApiError: The server did not begin.
    """
    try:
        uvicorn = import_server()
        from persona_lens.live.serving.routes import make_server  # needs starlette

        found = listener.getsockname()[1]
        server, answering = make_server(setup, _find_hosts(host))
        config = uvicorn.Config(
            server, log_config=None, access_log=False, lifespan="off", ws="none", http="h11", loop="asyncio",
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        shown = "localhost" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
        return RunningApp(
            f"http://{shown}:{found}/", warn_of_reach(host, found), uvicorn.Server(config), answering, listener
        )
    except BaseException:
        listener.close()
        raise


def warn_of_reach(host: str, port: int) -> str:
    """Return what to know about who can reach a page; nothing where only this machine can."""
    if _is_loopback(host):
        return ""
    return (
        f"Careful: the page is open to everyone who can reach this machine at port {port}. There is no password and no "
        "encryption: they can use the model, and whoever is on the way can read along. To reach it from another "
        f"machine alone, leave --host out and open a tunnel: ssh -L {port}:localhost:{port} THIS_MACHINE."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _find_hosts(host: str) -> Hosts:
    if _is_loopback(host):
        return Hosts(LOOPBACK_NAMES | {host.lower()})
    return Hosts(LOOPBACK_NAMES | {host.lower(), socket.gethostname().lower()}, any_address=True)


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address, before anything answers there.

    Raises:
        InvalidArgumentError: It cannot be listened on.
    """
    if not 0 <= port < 2**16:
        raise InvalidArgumentError.of("port", "be in [0, 65536)", port)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0] if host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, ValueError) as error:  # ValueError: no name at all
        hint = f"The system says: {error}. Port 0 takes one that is free."
        is_taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        name, rule = ("port", f"be free to listen on at {host}") if is_taken else ("host", "be an address to listen on")
        raise InvalidArgumentError.of(name, rule, f"{host}:{port}", hint) from None


def import_server() -> ModuleType:
    """Import what serves the page.

    Raises:
        ImportError: The extra ``app`` is not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError("The page needs a server. Install it with: pip install 'persona-lens[app]'") from error
    return uvicorn
