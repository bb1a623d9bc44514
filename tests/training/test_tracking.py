"""Trackers get the numbers that TensorBoard gets, of one run per training, and never stop a training."""

import sys
import types

import pytest

from flaresemi.errors import ConfigError
from flaresemi.training.config import MAY_CHANGE, TrainingConfig
from flaresemi.training.monitoring import Monitor
from flaresemi.training.tracking import open_tracker, refuse_without_tracker
from flaresemi.workspace import ModelFolder

ROW = {"iteration": 20, "epoch": 2, "loss": 0.5, "validation_dice": {"liver": 0.9}, "validation_mean": 0.9}
NUMBERS = {"loss": 0.5, "validation_dice/liver": 0.9, "validation_mean": 0.9}


class PackageError(Exception):
    """What a package raises of its own."""


class Mlflow(types.ModuleType):
    """As much of MLflow as is used."""

    def __init__(self, uri=None):
        super().__init__("mlflow")
        self.uri, self.logged, self.params, self.ended, self.fails = uri, [], {}, [], False
        self.exceptions = types.SimpleNamespace(MlflowException=PackageError)

    def is_tracking_uri_set(self):
        return self.uri is not None

    def get_tracking_uri(self):
        return self.uri

    def MlflowClient(self, tracking_uri):  # noqa: N802
        self.used = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name, artifact_location):
        self.artifacts = artifact_location
        return "1"

    def create_run(self, experiment, run_name):
        self.title = run_name
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run7"))

    def log_param(self, run, key, value):
        self.params[key] = value

    def log_metric(self, run, key, value, step):
        if self.fails:
            raise PackageError("server gone")
        self.logged.append((run, key, value, step))

    def set_terminated(self, run):
        self.ended.append(run)


class Wandb(types.ModuleType):
    """As much of Weights & Biases as is used."""

    def __init__(self):
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=PackageError)
        self.begun, self.logged, self.finished = [], [], 0

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **settings):
        self.begun.append(settings)
        self.id = settings["id"]
        return self

    def define_metric(self, name, step_metric):
        self.step_metric = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def mlflow(monkeypatch):
    module = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def track(tmp_path, name, rows=(ROW,)):
    monitor = Monitor(ModelFolder(tmp_path), 0, enabled=True, track=name, title="FINE fold 0", facts={"seed": 3})
    monitor.folder.history.write_text("", encoding="utf-8")
    for row in rows:
        monitor.add(dict(row))
    monitor.close()


def test_mlflow_gets_every_number_in_one_run(tmp_path, mlflow):
    track(tmp_path, "mlflow")
    assert mlflow.used == f"sqlite:///{tmp_path.resolve()}/logs/mlflow.db"
    assert mlflow.artifacts.startswith("file://")
    assert (mlflow.title, mlflow.params) == ("FINE fold 0", {"seed": "3"})
    assert {key: value for _, key, value, _ in mlflow.logged} == NUMBERS
    assert {(run, step) for run, _, _, step in mlflow.logged} == {("run7", 20)}
    mlflow.create_run = None  # a training that goes on makes no other
    track(tmp_path, "mlflow", [ROW | {"iteration": 30}])
    assert {run for run, *_ in mlflow.logged} == {"run7"}
    assert mlflow.ended == ["run7", "run7"]


def test_mlflow_goes_to_the_server_that_the_user_has_named(tmp_path, mlflow):
    mlflow.uri = "http://tracking.example"
    track(tmp_path, "mlflow")
    assert (mlflow.used, mlflow.artifacts) == ("http://tracking.example", None)


def test_mlflow_takes_the_experiment_that_another_training_makes_at_the_same_moment(tmp_path, mlflow):
    others = [None, types.SimpleNamespace(experiment_id="5")]

    def create_experiment(name, artifact_location):
        raise PackageError("already exists")

    mlflow.create_experiment = create_experiment
    mlflow.get_experiment_by_name = lambda name: others.pop(0)
    mlflow.create_run = lambda experiment, run_name: types.SimpleNamespace(
        info=types.SimpleNamespace(run_id=f"run of {experiment}")
    )
    track(tmp_path, "mlflow")
    assert {run for run, *_ in mlflow.logged} == {"run of 5"}
    others[:] = [None, None]
    assert open_tracker("mlflow", tmp_path / "other", "", {}) is None  # it failed for another reason


@pytest.mark.parametrize(("name", "mode"), [("wandb", "offline"), ("wandb-online", "online")])
def test_wandb_writes_files_unless_told_to_send(tmp_path, wandb, name, mode):
    track(tmp_path, name)
    track(tmp_path, name, [ROW | {"iteration": 30}])
    first, second = wandb.begun
    assert (first["mode"], first["config"], first["dir"]) == (mode, {"seed": 3}, str(tmp_path / "logs"))
    assert first["id"] == second["id"]
    assert wandb.logged == [NUMBERS | {"iteration": 20}, NUMBERS | {"iteration": 30}]
    assert (wandb.step_metric, wandb.finished) == ("iteration", 2)


def test_a_tracker_that_fails_is_told_once_and_left_alone(tmp_path, mlflow, caplog):
    mlflow.fails = True
    track(tmp_path, "mlflow", [ROW, ROW])
    assert caplog.text.count("server gone") == 1
    assert mlflow.logged == []
    mlflow.MlflowClient = None
    assert open_tracker("mlflow", tmp_path / "other", "", {}) is None


def test_without_one_nothing_is_imported_or_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(tmp_path, "none")
    assert not list((tmp_path / "logs").glob("*_run"))


def test_what_is_not_installed_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr("flaresemi.training.tracking.importlib.util.find_spec", lambda name: None)
    refuse_without_tracker("none")
    for name, package in (("mlflow", "mlflow"), ("wandb-online", "wandb")):
        with pytest.raises(ConfigError, match=rf"flaresemi\[{package}\]"):
            refuse_without_tracker(name)


def test_it_may_change_while_a_training_goes_on():
    assert TrainingConfig().track == "none"
    assert "track" in MAY_CHANGE
