import dataclasses
import enum
import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaresemi.errors import ConfigError, PlanError
from flaresemi.records import CAME_LATER, dumps, from_plain, load_json, load_record, record_hash, save_record


class Color(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    point: tuple[int, int, int]
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    color: Color
    kind: Literal["plain", "residual"]
    inner: Inner
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    flag: bool = False
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "wrong":
            raise ValueError("name is wrong")


numbers = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, point=st.tuples(*[st.integers()] * 3), weight=numbers)
outers = st.builds(
    Outer,
    name=st.text().filter(lambda name: name != "wrong"),
    color=st.sampled_from(Color),
    kind=st.sampled_from(["plain", "residual"]),
    inner=inners,
    many=st.lists(inners, max_size=3).map(tuple),
    maybe=st.none() | inners,
    table=st.dictionaries(st.text(), numbers, max_size=3),
    flag=st.booleans(),
    reasons=st.dictionaries(st.text(), st.text(), max_size=2),
)
OUTER = Outer(name="n", color=Color.RED, kind="plain", inner=Inner(point=(1, 2, 3)))


def plain(**changes):
    return {**json.loads(dumps(OUTER)), **changes}


@given(outers)
def test_what_is_written_is_read_back_equal(record):
    assert from_plain(Outer, json.loads(dumps(record)), source="x") == record


def test_saved_and_loaded(tmp_path):
    save_record(tmp_path / "r.json", OUTER)
    assert load_record(tmp_path / "r.json", Outer) == OUTER


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (plain(colour="red"), "unknown key 'colour' (did you mean 'color'?)"),
        (plain(inner={"point": [1, 2, 3], "wieght": 1}), "'inner.wieght' (did you mean 'weight'?)"),
        ({key: value for key, value in plain().items() if key != "kind"}, "missing key 'kind'"),
        (plain(inner={"point": [1, 2]}), "'inner.point' must have 3 entries, found 2"),
        (plain(inner={"point": [1, 2, 2.5]}), "'inner.point[2]' must be of type int, found 2.5"),
        (plain(inner={"point": [1, 2, True]}), "'inner.point[2]' must be of type int, found True"),
        (plain(inner={"point": [1, 2, 3], "weight": True}), "'inner.weight' must be of type float"),
        (plain(inner={"point": [1, 2, 3], "weight": 10**400}), "'inner.weight' is too large"),
        (plain(color="green"), "'color' must be one of 'red', 'blue', found 'green'"),
        (plain(kind="residal"), "'kind' must be one of 'plain', 'residual', found 'residal'"),
        (plain(kind=["plain"]), "'kind' must be one of"),
        (plain(many={}), "'many' must be a list"),
        (plain(many=[[1]]), "'many[0]' must be an object"),
        (plain(table=[]), "'table' must be an object"),
        (plain(flag=1), "'flag' must be of type bool"),
        (plain(name=None), "'name' must be of type str"),
        (plain(name="wrong"), "name is wrong"),
        ([], "the file must be an object"),
    ],
)
def test_every_mistake_is_named_with_its_place_and_file(content, expected, tmp_path):
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError) as caught:
        load_record(path, Outer)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.fix


def test_an_integer_stands_for_a_float_and_becomes_one():
    weight = from_plain(Inner, {"point": [1, 2, 3], "weight": 2}, source="x").weight
    assert type(weight) is float
    assert weight == 2.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": 1', "not valid JSON"),
        ('{"a": 1} {"b": 2}', "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_text_that_is_not_strict_json_is_refused(text, expected, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_json(path, error=ConfigError)
    assert caught.value.where == str(path)


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(PlanError, match="finite"):
        from_plain(Inner, json.loads('{"point": [1, 2, 3], "weight": 1e999}'), source="x")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    for name, expected in [("absent", "file not found"), ("binary", "not a text file"), ("folder", "cannot be read")]:
        with pytest.raises(PlanError, match=expected):
            load_json(tmp_path / f"{name}.json")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert load_json(tmp_path / "a.json") == {"a": 1}


@given(outers, outers)
def test_hashes_differ_exactly_where_content_besides_reasons_differs(one, other):
    same = dataclasses.replace(one, reasons={}) == dataclasses.replace(other, reasons={})
    assert (record_hash(one) == record_hash(other)) == same
    assert record_hash(one) == record_hash(dataclasses.replace(one, reasons={"a": "because"}))


def test_reasons_inside_records_do_not_count_either():
    @dataclasses.dataclass(frozen=True)
    class Wrapper:
        outer: Outer

    assert record_hash(Wrapper(OUTER)) == record_hash(Wrapper(dataclasses.replace(OUTER, reasons={"a": "b"})))


def test_lines_stay_readable():
    text = dumps(dataclasses.replace(OUTER, many=tuple(Inner(point=(i, i, i)) for i in range(50))))
    assert '"point": [1, 2, 3],' in text
    assert max(map(len, text.splitlines())) <= 122


@pytest.mark.parametrize(
    "text",
    ['{"name": "\\ud800"}', '{"\\uDFFF": 1}', '{"a": "\\ud83d \\ude00"}', "[" * 100_000, "1" * 5000, '{"a": NaN}'],
)
def test_what_cannot_be_written_again_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(PlanError, match="not valid JSON") as caught:
        load_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 1000
    (tmp_path / "a.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert load_json(tmp_path / "a.json") == {"a": "😀"}


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), {"k" * 10**5: 1}, 10**400, "a\nb\u202e"])
@pytest.mark.parametrize("key", ["color", "kind", "inner", "many", "table", "flag", "y" * 10**5])
def test_messages_stay_short(key, value):
    with pytest.raises(PlanError) as caught:
        from_plain(Outer, plain(**{"name": 1, key: value}), source="file")
    assert len(str(caught.value)) < 1000
    assert "\u202e" not in str(caught.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Versioned:
    """A record with a version."""

    schema_version: int = 3
    name: str


@pytest.mark.parametrize(
    ("version", "advice"), [(4, "update this one"), (2, "older flaresemi"), ("3", "older flaresemi"), (None, "older")]
)
def test_another_version_is_named_before_anything_else(tmp_path: Path, version: object, advice: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"schema_version": version, "renamed": 1}))
    with pytest.raises(PlanError, match=advice) as told:
        load_record(path, Versioned)
    assert f"schema_version {version!r} is not known, this flaresemi reads 3" in str(told.value)
    path.write_text(json.dumps({"schema_version": 3, "name": "a"}))
    assert load_record(path, Versioned).name == "a"


def test_a_younger_field_leaves_the_hash_alone_until_it_says_something_new() -> None:
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Old:
        size: int

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Young(Old):
        place: str = dataclasses.field(default="auto", metadata=CAME_LATER | {"before": "cpu"})

    assert from_plain(Young, {"size": 3}, source="a file") == Young(size=3, place="cpu")
    before, *same = (record_hash(each) for each in (Old(size=3), Young(size=3), Young(size=3, place="cpu")))
    assert same == [before, before]
    assert record_hash(Young(size=3, place="device")) != before
