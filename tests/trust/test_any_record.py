"""Whatever stands in a JSON file, only the declared error may come of it, in a message that can be read."""

import ast
import dataclasses
import functools
import json
import math
import random
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.errors import SelectionError
from flaresemi.ranges import range_of, type_hints
from flaresemi.records import dumps, from_plain, load_json
from tests.trust.mutations import spoil
from tests.trust.targets import RECORDS, example

PACKAGE = Path(__file__).resolve().parents[2] / "flaresemi"

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def read(cls: type, value: object) -> None:
    try:
        record = from_plain(cls, value, source="file", error=SelectionError)
    except SelectionError as error:
        assert 0 < len(str(error)) < 2000
        assert "file" in str(error)
        return
    assert from_plain(cls, json.loads(dumps(record)), source="file") == record


@given(st.sampled_from(RECORDS), anything)
def test_any_value(cls: type, value: object) -> None:
    read(cls, value)


@settings(max_examples=300)
@given(st.sampled_from(RECORDS), st.integers(0, 10**6), anything)
def test_nearly_valid_values(cls: type, seed: int, value: object) -> None:
    rng = random.Random(seed)
    found = example(rng, cls)
    for _ in range(rng.randrange(3)):
        found = spoil(rng, found)
    if isinstance(found, dict) and found and rng.random() < 0.5:
        found[rng.choice(sorted(found))] = value
    read(cls, found)


@given(st.binary(max_size=60) | st.text('[{"a:,1}]\\ud8', max_size=30).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(content)
        file.flush()
        try:
            value = load_json(Path(file.name), error=SelectionError)
        except SelectionError as error:
            assert len(str(error)) < 1000
        else:
            json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize("depth", [900, 960, *range(970, 1000, 3), 5000])
def test_what_is_nested_deeply(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"case_id": ' + "[" * depth + "]" * depth + "}")
    for cls in RECORDS:
        with pytest.raises(SelectionError) as caught:
            from_plain(cls, load_json(path, error=SelectionError), source=path, error=SelectionError)
        assert len(str(caught.value)) < 1000


def leaves(kind: object) -> Iterator[object]:
    """The types of the numbers in a field."""
    if typing.get_origin(kind) is typing.Annotated or kind in (int, float):
        yield kind
    else:
        for inner in typing.get_args(kind):
            yield from leaves(inner)


def records(cls: object, seen: dict[type, None]) -> dict[type, None]:
    """A record's class and those of the records in it."""
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in seen:
        seen[cls] = None
        for kind in type_hints(cls).values():
            records(kind, seen)
    for inner in typing.get_args(cls):
        records(inner, seen)
    return seen


ALL_RECORDS = list(functools.reduce(lambda seen, cls: records(cls, seen), RECORDS, {}))
NUMBERS = [
    (cls, name, leaf)
    for cls in ALL_RECORDS
    for name, kind in type_hints(cls).items()
    for leaf in dict.fromkeys(leaves(kind))
    if name != "schema_version"  # compared with the one that is known
]

#: Numbers that may be negative, and why.
MAY_BE_NEGATIVE = {
    "an intensity": {
        "percentile_00_5", "percentile_05", "percentile_50", "percentile_95", "percentile_99_5", "mean", "clip_low",
        "clip_high", "minimum", "maximum", "middle_05", "middle_95", "tissue_50", "channel_minima",
    },
    "an intensity of a case that is known": {"Norm.median", "Norm.lowest", "Norm.highest"},
    "a place or direction": {"origin_xyz_mm", "direction"},
    "what the builder of a network or a trainer takes": {"arguments", "trainer_settings"},
    "what a NIfTI header says of them": {"pixdim", "quaternion", "offset", "srow"},
    "whatever another package measures": {"more"},
    "a user's label value": {
        "value", "background", "values", "more_values", "written_values", "ignore", "CaseFacts.organs",
    },
    "a difference or the logarithm of a ratio": {"largest_component_gain", "intercept", "offsets", "ahead"},
    "-1 says that there is no such file; a clock may have been wrong": {"size", "mtime_ns"},
    "folds were made with any seed": {"Splits.seed"},
}  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "kind"), NUMBERS, ids=lambda each: getattr(each, "__name__", str(each)))
def test_every_number_has_a_range(cls: type, name: str, kind: object) -> None:
    """Whoever adds a number to a record says which ones make sense."""
    known = range_of(kind)
    assert known is not None, f"{cls.__name__}.{name}: give it a range of flaresemi/ranges.py"
    rng = random.Random(0)
    wild: list[object] = [math.nan, math.inf, -math.inf, 1e300, 10**400]
    allowed = {each for names in MAY_BE_NEGATIVE.values() for each in names}
    if not {name, f"{cls.__name__}.{name}"} & allowed:
        wild.append(-1)
    for number in (*wild, *((known.low,) if known.above else ()), *((known.high,) if known.below else ())):
        if isinstance(number, float) and math.isfinite(number) and int in typing.get_args(kind):
            number = int(number)
        content = example(rng, cls)
        assert isinstance(content, dict)
        put = functools.partial(replaced, kind=type_hints(cls)[name], number=number)
        with pytest.raises(SelectionError) as told:  # first in the file: nothing else is wrong before it
            from_plain(
                cls,
                {name: put(content[name])} | content | {name: put(content[name])},
                source="file",
                error=SelectionError,
            )
        assert name in str(told.value)
        assert len(str(told.value)) < 1000


def replaced(value: object, *, kind: object, number: object) -> object:
    """The plain value of a field with all its numbers exchanged."""
    if isinstance(value, list):
        return [replaced(item, kind=kind, number=number) for item in value]
    if isinstance(value, dict):
        return {key: replaced(item, kind=kind, number=number) for key, item in value.items()}
    return number


def test_every_record_that_is_loaded_is_tried() -> None:
    loaded = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("load_record", "from_plain"):
                loaded.add(ast.unparse(node.args[0 if ast.unparse(node.func) == "from_plain" else 1]).split(".")[-1])
    assert loaded - {"cls", "Settings"} == {cls.__name__ for cls in RECORDS}
