"""The page on compatibility says what is so."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import flaresemi
from flaresemi.networks import checkpoint

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"


def test_the_page_has_the_schema_version_of_every_record() -> None:
    written = {checkpoint.__name__: checkpoint.SCHEMA_VERSION}
    for found in pkgutil.walk_packages(flaresemi.__path__, "flaresemi."):
        module = importlib.import_module(found.name)
        for cls in vars(module).values():
            if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == found.name:
                fields = {field.name: field.default for field in dataclasses.fields(cls)}
                if "schema_version" in fields:
                    written[f"{found.name}.{cls.__name__}"] = fields["schema_version"]
    rows = re.findall(r"^\| `(flaresemi\.[\w.]+)` \| .+ \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(version) for name, version in rows} == written
