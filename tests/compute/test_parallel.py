import functools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import PurePath

import pytest

from flaresemi.compute import parallel
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.errors import FlaresemiError, ImageError


def square(number):
    return number * number


def fail_at(bad, number):
    if number == bad:
        raise ImageError("cut off", where="a.nii.gz", fix="copy it again")
    return number


def stumble(number):
    raise ZeroDivisionError(f"in the middle of {number}")


def die_by(code, number):
    if number == 3:
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    return number


def be_asked_to_leave(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)
    return number


def threads(_):
    import torch

    return torch.get_num_threads(), os.getpid()


def speak(number):
    logging.getLogger("flaresemi.io").warning("%s: case %d is odd", PurePath("a\nb\x1b[2J"), number)


def note(folder, number):
    (folder / str(number)).touch()
    time.sleep(0.01)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_comes_back_with_its_result(workers):
    assert dict(parallel_map(square, range(7), workers=workers)) == {n: n * n for n in range(7)}
    assert list(parallel_map(square, [], workers=workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_keeps_its_kind_and_its_parts(workers):
    with pytest.raises(ImageError) as caught:
        list(parallel_map(functools.partial(fail_at, 2), range(4), workers=workers))
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("cut off", "a.nii.gz", "copy it again")


def test_the_traceback_of_a_worker_is_kept():
    with pytest.raises(ZeroDivisionError, match="in the middle") as caught:
        list(parallel_map(stumble, range(2), workers=2))
    assert "in stumble" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(-signal.SIGKILL, "lack of memory"), (-signal.SIGSEGV, "crashed (SIGSEGV)"), (7, "exit code 7")],
)
def test_a_dead_worker_is_told_from_a_broken_item(code, expected):
    with pytest.raises(FlaresemiError) as caught:
        list(parallel_map(functools.partial(die_by, code), range(8), workers=2))
    assert expected in str(caught.value)
    assert "--workers" in caught.value.fix


def test_workers_leave_it_to_their_parent_to_end_them():
    asked = [signal.SIGUSR1, signal.SIGTERM]
    assert sorted(result for _, result in parallel_map(be_asked_to_leave, asked, workers=2)) == sorted(asked)


def test_one_worker_is_this_process_and_others_have_one_thread_each():
    assert {pid for _, (_, pid) in parallel_map(threads, range(3), workers=1)} == {os.getpid()}
    results = [result for _, result in parallel_map(threads, range(3), workers=2)]
    assert {count for count, _ in results} == {1}
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.parametrize("mute", [True, False])
def test_workers_are_mute_where_their_results_say_it_all(mute, capfd):
    list(parallel_map(speak, range(2), workers=2, mute=mute))
    said = capfd.readouterr().err
    assert ("is odd" in said) != mute
    assert ("warning: a\\nb\\x1b[2J: case 1 is odd\n" in said) != mute


def test_no_more_than_two_items_per_worker_are_under_way(tmp_path):
    source = parallel_map(functools.partial(note, tmp_path), range(50), workers=2)
    next(source)
    time.sleep(0.5)
    started = len(os.listdir(tmp_path))
    source.close()
    assert started <= 5


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os, sys, time
            from flaresemi.compute.parallel import parallel_map

            def report(number):
                print(os.getpid(), flush=True)
                time.sleep(0.2)

            if __name__ == "__main__":
                for _ in parallel_map(report, range(1000), workers=2):
                    pass
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, encoding="utf-8", env=environment)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlived its parent")
    process.stdout.close()


@pytest.mark.parametrize(
    ("gib_per_worker", "asked", "expected"),
    [(1.0, None, 4), (1.0, 2, 2), (1.0, 99, 8), (5.0, None, 1), (5.0, 4, 1), (50.0, None, 1), (0.0, 3, 3), (1.0, 0, 1)],
)
def test_workers_fit_into_memory(monkeypatch, gib_per_worker, asked, expected):
    monkeypatch.setattr(parallel, "free_memory_gib", lambda: 10.0)
    monkeypatch.setattr(parallel, "available_cores", lambda: 4)
    assert worker_count(gib_per_worker, asked) == expected


def blas_threads(_):
    import numpy as np  # its library must be loaded to be asked
    import threadpoolctl

    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("workers", [1, 2])
def test_matrix_products_keep_to_one_thread(workers):
    before = blas_threads(0)
    assert before  # numpy's own library is among them
    assert all(found == {1} for _, found in parallel_map(blas_threads, range(3), workers=workers))
    assert blas_threads(0) == before
