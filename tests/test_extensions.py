from pathlib import Path

import pytest

from flaresemi import extensions
from flaresemi.errors import ConfigError
from tests.made_package import install

GROUP = "flaresemi.networks"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    points = f"[{GROUP}]\nodd = oddnets:Odd\nbroken = oddnets:Missing\n"
    folder = install(tmp_path / "site", "oddnets", "class Odd:\n    pass\n", points)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.usefixtures("installed")
def test_what_a_package_declares_is_found_with_its_version() -> None:
    found, origin = extensions.load(GROUP, "odd")
    assert found.__name__ == "Odd"
    assert str(origin) == "oddnets 1.2"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("od", r"did you mean 'odd'.*known here: broken, odd, unet"),
        ("oddnets:Odd", "no installed package has"),
        ("broken", "'broken' of oddnets 1.2 cannot be imported"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + message):
        extensions.load(GROUP, name, own=("unet",))


def test_two_packages_do_not_share_a_name(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = f"[{GROUP}]\nodd = othernets:Odd\n"
    monkeypatch.syspath_prepend(install(tmp_path / "other", "othernets", "Odd = int\n", points))
    with pytest.raises(ConfigError, match="several packages have 'odd'"):
        extensions.load(GROUP, "odd")


@pytest.mark.usefixtures("installed")
def test_a_class_by_its_path() -> None:
    found, origin = extensions.by_path("oddnets:Odd")
    assert found.__name__ == "Odd"
    assert str(origin) == "oddnets 1.2"
    assert extensions.by_path("json:JSONDecoder")[1].version == ""
    for wrong in ("oddnets:Nothing", "nowhere.at_all:Odd", ":Odd"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            extensions.by_path(wrong)
