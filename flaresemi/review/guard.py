"""Keeps strangers out of the page: what holds for every local server, with the token as the first part of the path.

So the page and all that belongs to it have addresses that nobody can guess, and it runs its own scripts only.
"""

from flaresemi.web.gate import App, Gate, Message, Receive, Scope, Send

#: A request that changes something says this, which other origins may not without being asked.
HEADER = b"x-flaresemi"

#: More than any label map; what a request may send is decided by its image.
_MOST_BYTES = 1 << 33

#: The page runs its own scripts only, loads nothing from elsewhere, and stands in no frame.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        b"connect-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Guard:
    """In front of the application: refuses what is not the page's, before anything is read.

    Args:
        application: What answers the others; its paths do not have the token.
        token: The first part of every path.
    """

    def __init__(self, application: App, token: str) -> None:
        self._gate = Gate(application, token=token, most_bytes=_MOST_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._gate(scope, receive, send)
            return
        parts = scope["path"].split("/", 2)
        token, path = parts[1:] if len(parts) == 3 else ("", "")
        headers = [each for each in scope["headers"] if each[0] != b"authorization"]
        if _is_foreign(scope["method"], dict(headers), len(headers)):
            token = ""
        bearer = (b"authorization", b"Bearer " + token.encode("utf-8", "replace"))
        inside = "/" + path
        inner = {
            **scope,
            "headers": [*headers, bearer],
            "path": inside,
            "raw_path": inside.encode("utf-8", "replace"),
            "root_path": "",
        }

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        await self._gate(inner, receive, answer)


def _is_foreign(method: str, headers: dict[bytes, bytes], count: int) -> bool:
    """Whether a request is none that the page itself makes."""
    if len(headers) != count:  # a header stands twice
        return True
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    return method not in ("GET", "HEAD") and not (HEADER in headers and b"origin" in headers)
