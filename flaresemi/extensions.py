"""Extensions of flaresemi in other installed packages, by the entry points that those declare.

A name from a file or an option is looked up among the entry points of its group and nowhere else: what can be loaded is
what somebody installed for flaresemi. `by_path` imports a module by name, and takes only what the user typed.
"""

import dataclasses
import importlib
import importlib.metadata

from flaresemi.errors import ConfigError, FlaresemiError, shown
from flaresemi.records import closest

#: Subclasses of `flaresemi.training.trainer.Trainer`.
TRAINERS = "flaresemi.trainers"

#: Builders of networks: (NetworkPlan, **arguments) to a torch module.
NETWORKS = "flaresemi.networks"

#: Augmentation by name: a `flaresemi.training.augmentation.Strength`.
AUGMENTATIONS = "flaresemi.augmentations"

#: Readers of image files, by the ending without its dot: (Path) to a `flaresemi.io.image_file.ImageFile`.
READERS = "flaresemi.readers"

#: Metrics: (prediction, reference, spacing) of one organ to a number, see `flaresemi.evaluation.metrics`.
METRICS = "flaresemi.metrics"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Who holds what flaresemi does not hold itself.

    Attributes:
        package: Name of the installed package; the module where no package says that it holds it.
        version: Its version; empty where there is no package.
    """

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()


def installed(group: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of a group by name; more than one where packages compete for it."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        if entry not in found.setdefault(entry.name, []):
            found[entry.name].append(entry)
    return found


def load(
    group: str, name: str, *, own: tuple[str, ...] = (), error: type[FlaresemiError] = ConfigError
) -> tuple[object, Package]:
    """Imports what an installed package calls `name`.

    Args:
        own: The names that flaresemi holds itself, for the message.

    Raises:
        FlaresemiError: (as `error`) no package declares that name, more than one does, or its import fails.
    """
    known = installed(group)
    if name not in known:
        raise error(
            f"no installed package has '{shown(name)}' in {group}{closest(name, [*own, *known])}",
            fix=f"known here: {', '.join(sorted({*own, *known})) or 'none'}; install the package that declares it",
        )
    if len(known[name]) > 1:
        packages = ", ".join(str(_package(entry)) for entry in known[name])
        raise error(f"several packages have '{name}' in {group}: {packages}", fix="uninstall all but one of them")
    (entry,) = known[name]
    try:
        return entry.load(), _package(entry)
    except (ImportError, AttributeError) as problem:
        raise error(
            f"'{name}' of {_package(entry)} cannot be imported: {shown(str(problem), 200)}",
            fix="repair or reinstall that package",
        ) from problem


def by_path(path: str) -> tuple[object, Package]:
    """Imports `package.module:Name`, as the user typed it.

    Raises:
        ConfigError: the module or the name in it does not exist, or its import fails.
    """
    module_name, _, name = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(
            f"'{shown(path)}' cannot be imported: {shown(str(problem), 200)}",
            fix="give package.module:Name of something installed, or set PYTHONPATH to the folder that holds it",
        ) from problem
    return found, package_of(module_name)


def declared_by(group: str, name: str) -> Package | None:
    """The package that declares `name`; None where none does, or several do. Nothing is imported."""
    entries = installed(group).get(name, [])
    return _package(entries[0]) if len(entries) == 1 else None


def package_of(module_name: str) -> Package:
    """The installed package that holds a module; the module itself, without a version, where none says so."""
    found = importlib.metadata.packages_distributions().get(module_name.partition(".")[0], [])
    if not found:
        return Package(package=module_name, version="")
    return Package(package=found[0], version=importlib.metadata.version(found[0]))


def _package(entry: importlib.metadata.EntryPoint) -> Package:
    if entry.dist is None:
        return Package(package=entry.module, version="")
    return Package(package=entry.dist.name, version=entry.dist.version)
