"""Experiment tracking by MLflow and Weights & Biases, optional packages that are imported where they are used.

A training goes on without it: what a tracker cannot take is told once, and nothing more is sent.
"""

import contextlib
import importlib.util
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flaresemi.errors import ConfigError
from flaresemi.files import read_text, write_text

logger = logging.getLogger(__name__)

#: The package behind each choice of `TrainingConfig.track`. `wandb` writes files alone, `wandb-online` sends them.
_PACKAGES = {"mlflow": "mlflow", "wandb": "wandb", "wandb-online": "wandb"}

#: The project and experiment of all trainings.
PROJECT = "flaresemi"

#: What MLflow and Weights & Biases raise besides exceptions of their own.
_TROUBLES = (OSError, RuntimeError, ValueError, TypeError, AttributeError)


class Tracker(Protocol):
    """Keeps the numbers of a training."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes the numbers of an epoch that ends with this step."""

    def close(self) -> None:
        """Ends the run."""


def refuse_without_tracker(name: str) -> None:
    """Checks that a tracker's package is installed.

    Raises:
        ConfigError: it is not.
    """
    package = _PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"--track {name} needs {package}, which is not installed", fix=f'pip install "flaresemi[{package}]"'
        )


def open_tracker(name: str, folder: Path, title: str, facts: Mapping[str, object]) -> Tracker | None:
    """A tracker of a training; the one that it has begun with, if it goes on. None: there is none, or it does not work.

    Args:
        name: Which.
        folder: Of the logs of the training: what is written on this machine goes there, and the run's name.
        title: Of the run.
        facts: The settings of the training.
    """
    if name == "none":
        return None
    kind = _PACKAGES[name]
    run_file = folder / f"{kind}_run"
    run = read_text(run_file).strip() if run_file.is_file() else ""
    opener = _Mlflow if kind == "mlflow" else _Wandb
    try:
        tracker: Any = opener(run, folder, title, facts, name)
        write_text(run_file, f"{tracker.run}\n")
    except _TROUBLES as problem:
        logger.warning("%s keeps no numbers of this training: %s", name, problem)
        return None
    return _Forgiving(tracker, name)


class _Forgiving:
    """A tracker that is left alone once it fails."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker: Tracker | None = tracker
        self._name = name

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.log(values, step)
        except _TROUBLES as problem:
            logger.warning("%s takes no more numbers of this training, which goes on: %s", self._name, problem)
            self._tracker = None

    def close(self) -> None:
        if self._tracker is not None:
            with contextlib.suppress(*_TROUBLES):
                self._tracker.close()


class _Mlflow:
    """To the server that MLFLOW_TRACKING_URI names; without, to a database among the logs."""

    def __init__(self, run: str, folder: Path, title: str, facts: Mapping[str, object], name: str) -> None:
        import mlflow

        folder.mkdir(parents=True, exist_ok=True)
        with _known(mlflow.exceptions.MlflowException):
            is_local, place = not mlflow.is_tracking_uri_set(), folder.resolve()
            uri = f"sqlite:///{place / 'mlflow.db'}" if is_local else mlflow.get_tracking_uri()
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            artifacts = (place / "mlflow").as_uri() if is_local else None
            experiment = _experiment(self._client, artifacts, mlflow.exceptions.MlflowException)
            self.run = run or self._client.create_run(experiment, run_name=title).info.run_id
            if not run:
                for key, value in facts.items():
                    self._client.log_param(self.run, key, str(value)[:500])
        self._error = mlflow.exceptions.MlflowException

    def log(self, values: Mapping[str, float], step: int) -> None:
        with _known(self._error):
            for key, value in values.items():
                self._client.log_metric(self.run, _plain(key), value, step=step)

    def close(self) -> None:
        with _known(self._error):
            self._client.set_terminated(self.run)


def _experiment(client: Any, artifacts: str | None, error: type[Exception]) -> str:
    """The identity of the experiment of all trainings, which others may be making at the same moment."""
    found = client.get_experiment_by_name(PROJECT)
    if found is None:
        try:
            return client.create_experiment(PROJECT, artifact_location=artifacts)
        except error:
            found = client.get_experiment_by_name(PROJECT)
            if found is None:
                raise
    return found.experiment_id


class _Wandb:
    """To files beside the logs, which `wandb sync` sends; or at once."""

    def __init__(self, run: str, folder: Path, title: str, facts: Mapping[str, object], name: str) -> None:
        import wandb

        self._error = wandb.errors.Error
        folder.mkdir(parents=True, exist_ok=True)
        with _known(self._error):
            self._run = wandb.init(
                project=PROJECT,
                name=title,
                id=run or uuid.uuid4().hex[:12],
                resume="allow",
                dir=str(folder),
                config=dict(facts),
                mode="online" if name == "wandb-online" else "offline",
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
            )
            self._run.define_metric("*", step_metric="iteration")  # a resumed training repeats some
        self.run = self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        with _known(self._error):
            self._run.log({**values, "iteration": step})

    def close(self) -> None:
        with _known(self._error):
            self._run.finish()


@contextlib.contextmanager
def _known(error: type[Exception]) -> Any:
    """Turns a package's own errors into one that is caught here."""
    try:
        yield
    except error as problem:
        raise RuntimeError(str(problem)) from problem


def _plain(name: str) -> str:
    """A name of a metric as MLflow takes it."""
    return "".join(char if char.isalnum() or char in "_-. /" else "_" for char in name)
