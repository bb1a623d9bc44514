import pickle

import pytest

from flaresemi import errors
from flaresemi.errors import FlaresemiError, ImageError

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


def test_every_error_of_the_module_is_one_that_the_commands_catch():
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert all(issubclass(kind, FlaresemiError) for kind in kinds)
