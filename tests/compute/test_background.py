import threading

import pytest

from flaresemi.compute.background import BegunEarly, FinishBehind, read_ahead

WAIT = 5.0


@pytest.mark.parametrize("overlap", [False, True])
def test_everything_comes_in_order(overlap):
    read = read_ahead(lambda item: item * 10, [1, 2, 3], overlap=overlap)
    assert [value for value, _ in read] == [10, 20, 30]
    assert list(read_ahead(lambda item: item, [], overlap=overlap)) == []


def test_the_next_item_is_read_while_one_is_worked_on_and_no_other():
    begun = [threading.Event() for _ in range(3)]
    items = read_ahead(lambda item: begun[item].set(), [0, 1, 2], overlap=True)
    next(items)
    next(items)  # the first item is done with, and the third is submitted only now
    assert begun[2].wait(WAIT)
    items = read_ahead(lambda item: item, range(100), overlap=False)
    assert next(items)[0] == 0


def test_nothing_is_read_ahead_without_overlap():
    read = []
    items = read_ahead(read.append, [0, 1], overlap=False)
    next(items)
    assert read == [0]


@pytest.mark.parametrize("overlap", [False, True])
def test_an_item_is_asked_for_when_it_is_to_be_read(overlap):
    asked = []
    items = read_ahead(lambda item: item, (asked.append(item) or item for item in range(5)), overlap=overlap)
    assert next(items)[0] == 0
    assert len(asked) <= 2
    assert [value for value, _ in items] == [1, 2, 3, 4]


def test_what_cannot_be_read_is_raised_in_its_turn():
    def read(item):
        if item == 1:
            raise KeyError(item)
        return item

    items = read_ahead(read, [0, 1], overlap=True)
    assert next(items)[0] == 0
    with pytest.raises(KeyError):
        next(items)


def test_work_goes_on_while_the_last_piece_is_finished():
    go_on, done = threading.Event(), []

    def piece():
        assert go_on.wait(WAIT)
        done.append("written")

    with FinishBehind(overlap=True) as finish:
        finish(piece)
        assert done == []
        go_on.set()
        finish(lambda: done.append("second"))
        assert done[0] == "written"
    assert done == ["written", "second"]


def test_at_once_without_overlap():
    done = []
    with FinishBehind(overlap=False) as finish:
        finish(lambda: done.append(1))
        assert done == [1]


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_piece_raises_is_not_lost(overlap):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), FinishBehind(overlap=overlap) as finish:
        finish(fail)


def test_the_first_item_is_read_from_the_start_and_once():
    begun, read = threading.Event(), []

    def note(item):
        read.append(item)
        begun.set()
        return item * 10

    with BegunEarly(note, 1) as early:
        assert begun.wait(WAIT)
        assert [early(2), early(1), early(1)] == [20, 10, 10]
    assert sorted(read) == [1, 1, 2]
    with BegunEarly(note, None) as early:
        assert early(3) == 30


def test_what_the_early_reading_raises_comes_when_the_item_is_asked_for():
    def fail(item):
        raise LookupError(item)

    with BegunEarly(fail, 1), pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018
    with BegunEarly(fail, 1) as early, pytest.raises(LookupError):
        early(1)
