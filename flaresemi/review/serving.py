"""The page's server: on this machine alone, under an address that nobody can guess, until it is stopped."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from flaresemi.errors import ConfigError
from flaresemi.files import read_text
from flaresemi.review.material import Material
from flaresemi.review.server import application
from flaresemi.review.wire import MOST_CLASSES
from flaresemi.web.gate import new_token
from flaresemi.web.running import Running, listening

#: Only programs on this machine get through to it.
HOST = "127.0.0.1"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,64}")


def serve(material: Material, ports: tuple[int, ...], by: str, announce: Callable[[str], None]) -> None:
    """Serves the page until it is stopped from the keyboard or by a signal.

    Args:
        material: What is reviewed.
        ports: Of the server; the first one that is free.
        by: The name that the page begins with.
        announce: Told the address once it can be opened.

    Raises:
        ConfigError: no port can be used, or the dataset has more organs than the page can show.
    """
    if material.labels.channels > MOST_CLASSES:
        raise ConfigError(
            f"the page shows at most {MOST_CLASSES - 1} organs, the dataset has {material.labels.channels - 1}",
            fix="flaresemi_review --export-queue and --import-corrections work with any number",
        )
    token = kept_token(material.workspace.review_token)
    with contextlib.ExitStack() as stack:
        for port in ports:
            try:
                listener = stack.enter_context(listening(HOST, port))
                break
            except ConfigError:
                if port == ports[-1]:
                    raise
        announce(f"http://{HOST}:{listener.getsockname()[1]}/{token}/")
        Running(application(material, token, by), listener).run()


def kept_token(path: Path) -> str:
    """The secret part of the address; the same as before, so that an open page outlives its server.

    It is kept in a file that nobody but its owner may read; where others could read it, there is a new one.

    Raises:
        OSError: it cannot be written.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        status, kept = os.lstat(path), read_text(path).strip()
        if stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and _TOKEN.fullmatch(kept):
            return kept
    token = new_token()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(token + "\n")
    return token
