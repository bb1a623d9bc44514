"""The page docs/speed.md shows the results that lie in benchmarks/results."""

import importlib.util
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def script():
    spec = importlib.util.spec_from_file_location("speed_page", REPOSITORY / "benchmarks" / "speed_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_tables_are_those_of_the_results():
    page = script()
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run benchmarks/speed_page.py"
    assert set(re.findall(r"<!-- from results: (\w+) -->", text)) == set(page.TABLES)


def test_its_pictures_are_there():
    page = script()
    shown = set(re.findall(r"\(pictures/speed_(\w+)\.svg\)", page.PAGE.read_text(encoding="utf-8")))
    assert shown == set(page.PLOTS)
    for name in shown:
        assert (page.PICTURES / f"speed_{name}.svg").read_text(encoding="utf-8").endswith("</svg>\n")


def test_a_table_that_has_changed_is_seen(monkeypatch, tmp_path):
    page = script()
    for name in ("scan_size.md",):
        (tmp_path / name).write_text((page.RESULTS / name).read_text(encoding="utf-8").replace("| 100 |", "| 101 |"))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    made = page.filled("<!-- from results: slices -->\nold\n<!-- end -->\n")
    assert "| 101 | 12.9 |" in made and "old" not in made
