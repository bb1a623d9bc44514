"""Whatever stands in a JSON file, only the declared error may come of it, in a message that can be read."""

import ast
import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaresemi.errors import SelectionError
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


def test_every_record_that_is_loaded_is_tried() -> None:
    loaded = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("load_record", "from_plain"):
                loaded.add(ast.unparse(node.args[0 if ast.unparse(node.func) == "from_plain" else 1]).split(".")[-1])
    assert loaded - {"cls"} == {cls.__name__ for cls in RECORDS}
