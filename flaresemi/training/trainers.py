"""Which trainer trains: flaresemi's own or one that the user names, the same for supervised training and for rounds."""

from typing import Any

from flaresemi import extensions
from flaresemi.errors import ConfigError
from flaresemi.training.config import TrainingConfig
from flaresemi.training.live_teacher import LiveTeacherTrainer
from flaresemi.training.semi_supervised import SemiSupervisedTrainer, SemiSupervision
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer

#: Ours, by name.
_OWN: dict[str, type[Trainer]] = {"default": Trainer, "live_teacher": LiveTeacherTrainer}


def trainer_class(name: str) -> type[Trainer]:
    """The class behind a name.

    Args:
        name: One of ours (`default`, `live_teacher`), one of the entry-point group `flaresemi.trainers`, or
            `package.module:Class`.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is no subclass of `Trainer`.
    """
    if name in _OWN:
        return _OWN[name]
    if ":" in name:
        found, origin = extensions.by_path(name)
    else:
        found, origin = extensions.load(extensions.TRAINERS, name, own=tuple(_OWN))
    if not isinstance(found, type) or not issubclass(found, Trainer):
        raise ConfigError(
            f"'{name}' of {origin} is no trainer", fix="name a subclass of flaresemi.training.trainer.Trainer"
        )
    return found


def with_pseudo_labels(kind: type[Trainer]) -> type[SemiSupervisedTrainer]:
    """The trainer that learns from pseudo-labels, too: each hook of `kind` stays what it is.

    A class that is a `SemiSupervisedTrainer` already decides by itself how it uses them.
    """
    if issubclass(kind, SemiSupervisedTrainer):
        return kind
    if kind is Trainer:
        return SemiSupervisedTrainer
    return type(f"SemiSupervised{kind.__name__}", (SemiSupervisedTrainer, kind), {"__module__": kind.__module__})


def make_trainer(
    task: TrainingTask, config: TrainingConfig, semi: SemiSupervision | None = None, **circumstances: Any
) -> Trainer:
    """The trainer that `config.trainer` names.

    Args:
        semi: What pseudo-labels add; None: real labels alone.
        circumstances: Device, ranks and so on, as for `Trainer`.

    Raises:
        FlaresemiError: there is no such trainer, or it cannot train this.
    """
    kind = trainer_class(config.trainer)
    if semi is not None:
        return with_pseudo_labels(kind)(task, config, semi, **circumstances)
    if issubclass(kind, SemiSupervisedTrainer):
        raise ConfigError(
            f"trainer '{config.trainer}' learns from pseudo-labels, and there are none",
            fix="name them by --pseudo-labels, or use it in flaresemi_semi_round",
        )
    return kind(task, config, **circumstances)
