import sys
from pathlib import Path

import pytest

from flaresemi.importing import import_without


def test_a_module_that_takes_another_where_it_is_there_does_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taker_of_more.py").write_text(
        "try:\n    import more_of_it\nexcept ImportError:\n    more_of_it = None\n", encoding="utf-8"
    )
    (tmp_path / "more_of_it.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_without("taker_of_more", "more_of_it").more_of_it is None
    import more_of_it

    assert sys.modules["more_of_it"] is more_of_it
    del sys.modules["taker_of_more"]
    assert import_without("taker_of_more", "more_of_it").more_of_it is None
    assert sys.modules["more_of_it"] is more_of_it
    del sys.modules["taker_of_more"], sys.modules["more_of_it"]
