"""The place of `sitecustomize` in a process, and all that it starts, in which flaresemi finds another system.

ELSEWHERE in the environment says which, as `sys.platform`. flaresemi, not the libraries, lacks the modules, attributes
and files of the kernel that this system lacks; and on Windows no file that is open is renamed or removed by anybody.
"""

import builtins
import errno
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

SYSTEM = os.environ["ELSEWHERE"]
NOT_ON_MACOS = {"os": "sched_getaffinity memfd_create posix_fadvise", "signal": "sigtimedwait sigwaitinfo", "sys": ""}
NOT_ON_WINDOWS = {
    "os": "sched_getaffinity memfd_create posix_fadvise O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fchmod fork "
    "geteuid getloadavg getpgid getuid killpg mkfifo nice posix_spawn pread pwrite register_at_fork setsid statvfs "
    "sync sysconf uname",
    "signal": "sigtimedwait sigwaitinfo SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 "
    "SIG_BLOCK SIG_SETMASK SIG_UNBLOCK alarm pause pthread_sigmask setitimer sigwait",
    "sys": "",
}
ABSENT = {
    name: frozenset(words.split()) for name, words in (NOT_ON_WINDOWS if SYSTEM == "win32" else NOT_ON_MACOS).items()
}
NO_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"} if SYSTEM == "win32" else set()


class Less(types.ModuleType):
    """A module without some of its attributes, and with others in place of its own."""

    def __init__(self, module: types.ModuleType, **others: object) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _others=others)

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT[self._module.__name__]:
            raise AttributeError(f"no {name} on {SYSTEM}")
        return self._others[name] if name in self._others else getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


def _asks() -> str:
    """The module, none of Python's own, that something is done for."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if name not in sys.stdlib_module_names:
            return name
        frame = frame.f_back
    return ""


def _stat(path: Any, *words: Any, **named: Any) -> os.stat_result:
    if isinstance(path, str) and path.startswith("/proc/"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return os.stat(path, *words, **named)


def _open(path: Any, *words: Any, **named: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return os.open(path, *words, **named)


def _kill(process: int, number: int) -> None:
    raise SystemExit(f"process {process} would be ended")  # by any number, on Windows


HERE = {
    "os": Less(os, stat=_stat, **({"open": _open, "kill": _kill} if SYSTEM == "win32" else {})),
    "signal": Less(signal),
    "sys": Less(sys, platform=SYSTEM),
}
_import = builtins.__import__


def _import_less(name: str, namespace: Any = None, *words: Any, **named: Any) -> types.ModuleType:
    if str((namespace or {}).get("__name__", "")).partition(".")[0] == "flaresemi":
        if name in NO_MODULES:
            raise ModuleNotFoundError(f"no {name} on {SYSTEM}")
        if name in HERE:
            return HERE[name]
    return _import(name, namespace, *words, **named)


def _is_open(path: Any) -> bool:
    """Whether this process holds a file, or one below a folder, open or mapped."""
    held = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            held.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        held |= {words[5].strip() for line in maps if len(words := line.split(maxsplit=5)) > 5}
    whole = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
    return any(f"{each}/".startswith(f"{whole}/") for each in held)


def _refusing(change: Callable) -> Callable:
    def refuse_or_change(path: Any, *words: Any, **named: Any) -> Any:
        frame = sys._getframe(1)
        if frame.f_globals.get("__name__") != "tempfile":  # which asks Windows itself to remove what it opens
            for each in (path, *(word for word in words if isinstance(word, str | os.PathLike))):
                if _is_open(each):
                    raise PermissionError(errno.EACCES, f"it is open: {os.strerror(errno.EACCES)}", os.fspath(each))
        return change(path, *words, **named)

    return refuse_or_change


def _refuse_kernel_files(event: str, words: tuple) -> None:
    if event == "open" and str(words[0]).startswith(("/proc/", "/sys/")) and _asks() == "flaresemi":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), words[0])


builtins.__import__ = _import_less
sys.addaudithook(_refuse_kernel_files)
if SYSTEM == "win32":
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for _name in ("rename", "replace", "unlink", "remove"):
        setattr(os, _name, _refusing(getattr(os, _name)))
