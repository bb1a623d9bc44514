"""What stands before every local server: a token, no other origin, no other name of the host, no more than is allowed.

Plain ASGI, so that nothing has to be installed to import it.
"""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Names of this machine for itself.
LOOPBACK = ("127.0.0.1", "localhost", "::1")

#: What every answer says to a browser: show nothing as something else, keep nothing, let no other page frame it.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def new_token() -> str:
    """A word that nobody can guess."""
    return secrets.token_urlsafe(24)


class TooLargeError(Exception):
    """A request sent more than it may."""


class Gate:
    """Lets a request through to an application only if it may be answered.

    Args:
        app: The application.
        token: What a request has to bring, as `Authorization: Bearer TOKEN` or as `token` in the address.
        hosts: The names that the server may be called by; None: any. A name that leads here by a stranger's DNS is
            none of them.
        most_bytes: Of the body of a request.
        open_paths: Paths that need no token.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str,
        hosts: Collection[str] | None = LOOPBACK,
        most_bytes: int,
        open_paths: Collection[str] = (),
    ) -> None:
        self._app, self._token, self._most_bytes = app, token.encode(), most_bytes
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it before the application hears of it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks another protocol
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        count, started = 0, False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._most_bytes:
                raise TooLargeError
            return message

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            await self._app(scope, counted, with_headers)
        except TooLargeError:
            if not started:
                await _answer(send, 413, self._too_large())

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _split(f"//{headers.get('host', '')}")
        if host is None or (self._hosts is not None and (host.hostname or "") not in self._hosts):
            return 421, "this server is not called by that name"
        origin = _split(headers.get("origin", ""))
        if origin is None or ("origin" in headers and origin.netloc != headers.get("host")):
            return 403, "requests of other sites are not answered"
        if scope["path"] not in self._open_paths and not self._has_token(scope, headers):
            return 401, "the token is missing or wrong: send it as 'Authorization: Bearer TOKEN'"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most_bytes:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"more than {self._most_bytes} bytes are not taken"

    def _has_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(given.strip().encode(), self._token)


def _split(address: str) -> SplitResult | None:
    """An address in parts; None where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


async def _answer(send: Send, status: int, what: str) -> None:
    body = json.dumps({"error": what}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
