"""The meaning of system errors: a machine that lacks something is told from a file that is damaged."""

import errno
import os

from flaresemi.errors import FlaresemiError


class SystemTrouble(FlaresemiError):
    """The machine lacks something, or a disk does not answer; no file is to blame."""


_GO_ON = "what is finished is kept: the same command goes on"
_FOLDER_HINT = f"or name another folder (--help lists the options); {_GO_ON}"

_MEMORY = (
    "memory ran out",
    f"close other programs, give the job more, or let less run at once (--workers 1, --loader-workers 0); {_GO_ON}",
)
_GPU_MEMORY = (
    "CUDA is out of memory",
    "let the GPU have no other work, or plan for less: flaresemi_plan_and_preprocess --replan --gpu-memory-gib 6",
)
_PROCESSES = (
    "no more processes or threads may be started",
    f"let less run at once (--workers 1, --loader-workers 0), or raise the limit (ulimit -u); {_GO_ON}",
)
_DISK = ("no space left on the disk", f"free some space, {_FOLDER_HINT}")

#: By the system's number: something is used up, and what is read or written is as good as before.
_SHORTAGES = {
    errno.ENOSPC: _DISK,
    errno.EDQUOT: ("the disk quota is used up", f"free some space, {_FOLDER_HINT}"),
    errno.EFBIG: ("a file would be larger than it may be here", f"raise the limit (ulimit -f, quota), {_FOLDER_HINT}"),
    errno.EMFILE: ("too many open files", f"raise the limit (ulimit -n 4096 in the shell); {_GO_ON}"),
    errno.ENFILE: ("too many open files on this machine", f"close other programs; {_GO_ON}"),
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _PROCESSES,
}

#: Others that say what to do.
_TROUBLES = _SHORTAGES | {
    errno.EROFS: ("this place is read-only", f"make it writable, {_FOLDER_HINT}"),
    errno.EACCES: ("permission denied", f"change the permissions, {_FOLDER_HINT}"),
    errno.EPERM: ("operation not permitted", f"change the permissions, {_FOLDER_HINT}"),
    errno.ENOENT: ("there is no such file or folder (any more)", f"put it back, {_FOLDER_HINT}"),
    errno.EBUSY: ("another program uses this file or folder", f"end that one, {_FOLDER_HINT}"),
}

_ELSE = f"see that the disk or network share works and is mounted, {_FOLDER_HINT}"

#: What libraries say, whose errors have no number.
_PHRASES = {
    "CUDA out of memory": _GPU_MEMORY,
    "CUDA error: out of memory": _GPU_MEMORY,  # the driver
    "HIP out of memory": _GPU_MEMORY,
    "would exceed allowed memory": _GPU_MEMORY,  # torch with CUDA's own allocator
    "CUDNN_STATUS_ALLOC_FAILED": _GPU_MEMORY,
    "CUBLAS_STATUS_ALLOC_FAILED": _GPU_MEMORY,
    "can't allocate memory": _MEMORY,  # torch
    "not enough memory": _MEMORY,
    "Failed to allocate memory": _MEMORY,  # ITK
    "bad_alloc": _MEMORY,
    "Cannot allocate memory": _MEMORY,
    "can't start new thread": _PROCESSES,
    "Resource temporarily unavailable": _PROCESSES,
    "Too many open files": _SHORTAGES[errno.EMFILE],
    "No space left on device": _DISK,
    "requested and": _DISK,  # numpy, of a short write: "80 requested and 16 written"
}

#: What is said of a workspace of cuDNN that does not fit, and of a card or a type of numbers that is not supported.
_PERHAPS_GPU_MEMORY = ("unable to find an engine", "Unable to find a valid cuDNN algorithm")


def is_shortage(problem: BaseException) -> bool:
    """Whether memory, disk, open files or processes ran out: what was read is not to blame, and may be read again."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno in _SHORTAGES
    return isinstance(problem, MemoryError) or _phrase(problem) is not None


def lacks_memory(problem: BaseException) -> bool:
    """Whether memory ran out, main memory or that of a GPU."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno == errno.ENOMEM
    return isinstance(problem, MemoryError) or _phrase(problem) in (_MEMORY, _GPU_MEMORY)


def lacks_gpu_memory(problem: BaseException) -> bool:
    """Whether the memory of a GPU ran out, or may have: less is worth a try, whose own error is the one to tell."""
    if not isinstance(problem, RuntimeError):
        return False
    return _phrase(problem) is _GPU_MEMORY or any(phrase in str(problem) for phrase in _PERHAPS_GPU_MEMORY)


def explained(problem: BaseException, *, where: object = None) -> SystemTrouble | None:
    """The clear form of an error of the system; None for any other, which is a bug.

    Args:
        where: What was worked on, for errors that name no file.
    """
    if isinstance(problem, MemoryError):
        return SystemTrouble(_MEMORY[0], where=where, fix=_MEMORY[1])
    known = _phrase(problem)
    if isinstance(problem, OSError):
        if problem.errno is not None:
            said = problem.strerror or os.strerror(problem.errno)
            known = _TROUBLES.get(problem.errno, (f"the system answered: {said}", _ELSE))
            if problem.errno == errno.ENOENT and problem.filename is None:  # Python, where no temporary folder can be
                known = (f"the system answered: {said}", f"make such a place, {_FOLDER_HINT}")
        known = known or (f"the system answered: {problem}", _ELSE)
        where = where if problem.filename is None else problem.filename
    return None if known is None else SystemTrouble(known[0], where=where, fix=known[1])


def _phrase(problem: BaseException) -> tuple[str, str] | None:
    if not isinstance(problem, RuntimeError | OSError):
        return None
    return next((meaning for phrase, meaning in _PHRASES.items() if phrase in str(problem)), None)
