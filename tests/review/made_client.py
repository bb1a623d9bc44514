"""The server of the page on a port of this machine, in a thread, and what asks it without tidying up the address."""

import contextlib
import dataclasses
import gzip
import http.client
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping

from flaresemi.review.server import application
from flaresemi.review.serving import HOST
from flaresemi.web.running import Running, listening
from tests.review.made_review import MadeReview

TOKEN = "secret"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content[:400].decode("utf-8", "replace")

    def json(self) -> dict:
        return json.loads(self.content)


@dataclasses.dataclass(frozen=True)
class Client:
    """Asks the server.

    Attributes:
        port: Of the server.
    """

    port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **how: object) -> Answer:
        return self.ask("GET", path, **how)

    def post(self, path: str, **how: object) -> Answer:
        return self.ask("POST", path, **how)

    def ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | str = b"",
    ) -> Answer:
        """One request, whose path is sent as it stands."""
        body = content.encode() if isinstance(content, str) else content
        words = f"?{urllib.parse.urlencode(params)}" if params else ""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path + words, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"host": f"127.0.0.1:{self.port}"} | dict(headers or {})).items():
                connection.putheader(name, value)
            if body:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it reads no more than it must
                connection.send(body)
            found = connection.getresponse()
            said = {name.lower(): value for name, value in found.getheaders()}
            raw = found.read()
        return Answer(found.status, said, gzip.decompress(raw) if said.get("content-encoding") == "gzip" else raw)


@contextlib.contextmanager
def serving(made: MadeReview, port: int = 0) -> Iterator[Client]:
    """Serves a workspace while the block runs."""
    with listening(HOST, port) as listener:
        running = Running(application(made.material(), TOKEN, "Ann"), listener)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield Client(listener.getsockname()[1])
        finally:
            running.stop()
            thread.join()
