"""Runs an application on a socket until it is told to stop. Uvicorn is optional, and imported when it is used."""

import contextlib
import importlib.util
import math
import signal
import socket
from collections.abc import Iterator
from typing import Any

from flaresemi.errors import ConfigError
from flaresemi.portability import ASKED_TO_LEAVE
from flaresemi.web.gate import App


def refuse_without_server(extra: str) -> None:
    """Checks that what serves is installed.

    Raises:
        ConfigError: it is not.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the server needs {' and '.join(missing)}, which is not installed", fix=f'pip install "flaresemi[{extra}]"'
        )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Args:
        host: A name or number of this machine.
        port: 0 takes any free one.

    Raises:
        ConfigError: it is another program's, or no address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as problem:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {problem}", fix="name another --port (0 takes a free one) or --host"
        ) from None
    with contextlib.closing(opened):
        yield opened


class Running:
    """An application on a socket.

    Args:
        app: The application.
        listener: The socket.
        grace_seconds: How long requests may take that are being answered when it is told to stop; a second signal ends
            them at once.
    """

    def __init__(self, app: App, listener: socket.socket, *, grace_seconds: float = 10.0) -> None:
        import uvicorn

        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=math.ceil(grace_seconds),
        )
        self._listener = listener
        self._server = _unending(config)

    def run(self) -> None:
        """Answers requests until `stop`, SIGINT or SIGTERM; what is being answered then has `grace_seconds`."""
        self._server.run([self._listener])

    def stop(self) -> None:
        """Ends `run`, also from another thread."""
        self._server.should_exit = True


def _unending(config: Any) -> Any:
    """Uvicorn's server, which a signal ends without ending the process."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before: dict[int, Any] = {}
            asked: tuple[int, ...] = (signal.SIGINT, *ASKED_TO_LEAVE)

            def stop(*_: object) -> None:
                self.should_exit, self.force_exit = True, self.should_exit

            with contextlib.suppress(ValueError):  # not the main thread, which alone hears of signals
                for number in asked:
                    before[number] = signal.signal(number, stop)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server(config)
