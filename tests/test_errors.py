import pickle
import weakref

import numpy as np
import pytest

from flaresemi import errors
from flaresemi.errors import FlaresemiError, ImageError, without_frames

KINDS = [FlaresemiError, *FlaresemiError.__subclasses__()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_the_way_back_from_a_worker(kind):
    error = kind("what", where="file", fix="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.what, again.where, again.fix) == ("what", "file", "do this")
    assert str(again) == str(error)


def test_the_message_says_what_where_and_what_to_do_on_three_lines():
    error = ImageError("cut off", where="a.nii.gz", fix="copy it again")
    assert [line.strip() for line in str(error).splitlines()] == ["cut off", "a.nii.gz", "copy it again"]


def test_parts_that_are_not_known_leave_no_empty_line():
    assert str(FlaresemiError("wrong")) == "wrong"
    assert str(FlaresemiError("wrong", fix="mend it")).splitlines()[1].strip() == "mend it"


@pytest.mark.parametrize("chained", ["from None", "from problem", ""])
def test_an_error_without_its_frames_holds_nothing_that_they_held(chained):
    held = []

    def fail():
        image = np.zeros(9)
        held.append(weakref.ref(image))
        raise MemoryError

    def explain():
        try:
            fail()
        except MemoryError as problem:
            if chained == "from None":
                raise ImageError("too large", fix="crop it") from None
            if chained == "from problem":
                raise ImageError("too large", fix="crop it") from problem
            raise ImageError("too large", fix="crop it")  # noqa: B904

    kept = []
    try:
        explain()
    except ImageError as error:
        kept.append(error)
    assert held[0]() is not None
    without_frames(kept[0])
    assert held[0]() is None
    assert str(kept[0]) == str(ImageError("too large", fix="crop it"))
    with pytest.raises(ImageError, match="too large"):
        raise kept[0]


def test_every_error_of_the_module_is_one_that_the_commands_catch():
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert all(issubclass(kind, FlaresemiError) for kind in kinds)
