"""The place of `sitecustomize` in a watched process and all that it starts: what it must not do is refused and noted.

Of the environment: WATCHED_NOTES, a file for what was refused; WATCHED_FOLDERS, those that may be written to.
"""

import os
import sys

_NOTES = os.open(os.environ["WATCHED_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_FOLDERS = tuple(os.environ["WATCHED_FOLDERS"].split(":"))
_DEVICES = ("/dev/null", "/dev/tty")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
    "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.setxattr": 1,
}  # fmt: skip
_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")


def _refuse(what: str) -> None:
    frame, looks_for_a_place = sys._getframe(2), False
    for _ in range(6):  # the search for a folder for temporary files tries and takes no for an answer
        if frame is None:
            break
        looks_for_a_place = looks_for_a_place or frame.f_code.co_name == "_get_default_tempdir"
        frame = frame.f_back
    if not looks_for_a_place:
        os.write(_NOTES, f"{what}\n".encode("utf-8", "replace"))
    raise PermissionError(13, f"refused: {what}")


def _is_outside(path: object, folder: object = -1) -> bool:
    if isinstance(path, int):
        return False
    name = os.fsdecode(path)  # type: ignore[arg-type]
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    whole = os.path.abspath(name)
    return whole not in _DEVICES and not any(f"{whole}/".startswith(f"{each}/") for each in _FOLDERS)


def _watch(event: str, args: tuple) -> None:
    if event == "open":
        path, _, flags = args
        if flags & _WRITES and _is_outside(path):
            _refuse(f"open {path!r} for writing")
    elif event in _CHANGES:
        # The descriptors of the folders that names are relative to come last: one for each name.
        paths = args[: _CHANGES[event]]
        folders = args[-len(paths) :] if event not in ("os.truncate", "os.setxattr", "os.symlink") else (-1, -1)
        for path, folder in zip(paths[-1:] if event == "os.symlink" else paths, folders, strict=False):
            if _is_outside(path, folder):
                _refuse(f"{event} {path!r}")
    elif event in _NETWORK:
        if isinstance(args[-1], tuple):  # the sockets of one machine have names
            _refuse(f"{event} {args[-1]}")
    elif event in _NAMES:
        _refuse(f"{event} {args[0]!r}")


sys.addaudithook(_watch)
