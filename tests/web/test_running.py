"""An application on a socket ends when it is told to: what is being answered has its time, but for a second signal."""

import asyncio
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "flaresemi[serve]"')

from flaresemi.web.running import Running, listening


class Slow:
    """An application that takes its time.

    Args:
        seconds: As long.
    """

    def __init__(self, seconds):
        self.seconds, self.is_asked = seconds, threading.Event()

    async def __call__(self, scope, receive, send):
        self.is_asked.set()
        await asyncio.sleep(self.seconds)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def asking(port, heard):
    """A thread that asks, and notes the status."""

    def ask():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                heard.append(answer.status)
        except (urllib.error.HTTPError, OSError) as refused:
            heard.append(getattr(refused, "code", None))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.parametrize(("grace_seconds", "status"), [(30.0, 200), (0.5, 500)])
def test_what_is_being_answered_is_answered_in_its_time(grace_seconds, status):
    slow, heard = Slow(3.0), []
    with listening("127.0.0.1", 0) as listener:
        running = Running(slow, listener, grace_seconds=grace_seconds)
        serving = threading.Thread(target=running.run)
        serving.start()
        asked = asking(listener.getsockname()[1], heard)
        assert slow.is_asked.wait(30)
        running.stop()
        asked.join(30)
        serving.join(30)
    assert heard == [status]
    assert not serving.is_alive()


def test_a_second_signal_ends_it_at_once():
    slow, heard = Slow(60.0), []
    with listening("127.0.0.1", 0) as listener:

        def leave():
            slow.is_asked.wait(30)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)

        leaving = threading.Thread(target=leave)
        leaving.start()
        asked = asking(listener.getsockname()[1], heard)
        started = time.monotonic()
        Running(slow, listener, grace_seconds=50.0).run()
        assert time.monotonic() - started < 30
        leaving.join(30)
        asked.join(30)
    assert heard != [200]
