"""The training loop. A subclass replaces what it wants to change: each `build_` hook returns something."""

import copy
import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from flaresemi.compute.device import device_name, synchronize
from flaresemi.compute.distributed import Ranks
from flaresemi.compute.metering import Clock, RunningTime, no_clock
from flaresemi.compute.precision import Precision
from flaresemi.errors import ConfigError, FlaresemiError, listed
from flaresemi.labels import Members
from flaresemi.networks.building import build_network, refuse_other_network
from flaresemi.networks.checkpoint import Checkpoint, save_checkpoint
from flaresemi.networks.compiling import compiled
from flaresemi.networks.memory_format import trains_channels_last
from flaresemi.records import from_plain, save_record, to_plain
from flaresemi.training import anatomy, runs
from flaresemi.training.augmentation import Augmentation
from flaresemi.training.budget import ENDLESS, TIMED_STEPS, TimeBudget, kept_schedule
from flaresemi.training.config import Recipe, TrainingConfig, local_batch_size, refuse_beyond_memory, resolve
from flaresemi.training.device_augmentation import DeviceAugmentation, augments_on_device
from flaresemi.training.draws import is_drawn
from flaresemi.training.history import Row, append_row, cut_history
from flaresemi.training.loading import failures_told, load_batches, usual_workers
from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss, usual_size_power
from flaresemi.training.monitoring import Monitor, progress, quick_validation
from flaresemi.training.optimization import Optimization
from flaresemi.training.patches import Batch, ReadBatch
from flaresemi.training.resuming import load_state, refuse_fewer, save_state
from flaresemi.training.sampling import AddressSampler, PatchSampler, Samples, TrainingCase
from flaresemi.training.schedule import Schedule, build_optimizer
from flaresemi.training.starting import Start, start_from
from flaresemi.training.task import TrainingTask, tell_gaps, unlabeled_cases

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """The choices of a trainer that has none of its own."""


class Trainer:
    """Trains one stage on one fold.

    Sample j of iteration i depends only on (seed, i, j): two ranks see what one would, and a resumed run goes on as if
    it had never stopped.

    Args:
        task: What is trained.
        config: The user's choices.
        device: Where.
        ranks: Of a distributed launch.
        command: The command line, for the record.
        stop_requested: Asked after every step; True saves the state and ends the loop.

    Attributes:
        settings: The choices of this kind of trainer, a `Settings`.
        augments_on_device: Patches are augmented where the network is; otherwise by the loader's processes.
        clock: Stands around the parts of a step: wait, transfer, augment (where that is done on the device), forward,
            loss, backward, optimizer.
    """

    #: What a subclass lets the user choose: a frozen dataclass whose fields have types, ranges and defaults.
    Settings: ClassVar[type] = NoSettings
    #: A class that replaces `training_step`, `build_sampler` or `case_sampler` says so itself where these work on
    #: patches that are augmented on the device: samples are a `ReadBatch`, and batches hold tensors.
    device_augmentation: ClassVar[bool] = True

    #: What is trained knows scans that lie turned, so that prediction need not look for the right turn.
    _knows_turns: ClassVar[bool] = False

    #: Whether many organs count with roots in cross-entropy, see `usual_size_power`.
    _counts_roots: ClassVar[bool] = True

    def __init__(
        self,
        task: TrainingTask,
        config: TrainingConfig,
        *,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
        command: tuple[str, ...] = (),
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        if not task.training:
            raise ConfigError(f"fold {task.fold} has no training cases", fix="label more cases, or train fold 'all'")
        self.task = task
        self.config = config
        self.settings: Any = from_plain(
            self.Settings, config.trainer_settings, source=f"trainer '{config.trainer}'", error=ConfigError
        )
        self.device = device
        self.ranks = ranks
        self.command = command
        self.stop_requested = stop_requested
        self.precision = Precision(device, config.precision)
        self.batch_size = local_batch_size(config, task.plan.batch_size, ranks.world_size)
        refuse_beyond_memory(task.plan, self.batch_size, device)
        self.augments_on_device = augments_on_device(config.augmentation_device, device, type(self), config.trainer)
        self._augment = DeviceAugmentation(device)
        self.sampler = self.build_sampler()
        torch.manual_seed(config.seed)
        self.network = self.build_network()
        if type(self).build_network is not Trainer.build_network:
            refuse_other_network(self.network, task.plan.network, what=f"trainer '{config.trainer}'")
        self.network.to(device)
        self.network.deep_supervision = config.deep_supervision  # type: ignore[assignment]
        self.network.channels_last = trains_channels_last(device, self.precision)  # type: ignore[assignment]
        self.loss = self.build_loss().to(device)
        if task.labels.has_regions:
            _refuse_other_organs(self.loss, task.labels.regions, config.trainer)
        self.iteration = 0
        self.epoch_losses: list[torch.Tensor] = []
        self.best_validation = -math.inf
        self.clock: Clock = no_clock
        self._validations = config.validations if task.validation else 0

    # What a subclass may replace.

    def training_cases(self) -> list[TrainingCase]:
        """The cases to draw from; here: the labeled ones of the fold, each with the organs it annotates."""
        opened, strength = self.task.store.open, self.config.augmentation
        return [
            TrainingCase(case_id=case_id, supervised=opened(case_id).record.supervised, augmentation=strength)
            for case_id in self.task.training
        ]

    def unlabeled_cases(self) -> list[TrainingCase]:
        """The prepared unlabeled cases, as samples in their own right, for trainers that learn from them.

        Those of a group of which the fold holds cases out are not among them.

        Raises:
            ConfigError: there are none.
            DatasetError: they are not known, the dataset not being at hand.
        """
        found = unlabeled_cases(self.task)
        if not found:
            raise ConfigError(
                f"trainer '{self.config.trainer}' learns from unlabeled cases, and none that it may use is prepared",
                where=self.task.store.folder,
                fix="put them into unlabeled_image or imagesUn and run flaresemi_plan_and_preprocess again",
            )
        strength = self.config.augmentation
        return [
            TrainingCase(case_id=case_id, supervised=(), augmentation=strength, is_labeled=False) for case_id in found
        ]

    def build_network(self) -> nn.Module:
        """The network of the plan; another one, which prediction could not build, comes from another plan.

        Here is the place for other first weights.
        """
        return build_network(self.task.plan.network)

    def first_weights(self) -> Start | None:
        """Puts what fits of the model `init_from` into the network; None where that is all of it."""
        task, path = self.task, Path(self.config.init_from or "")
        return start_from(self.network, task.plan.network, task.labels, task.channels, path, task.plan.stage)

    def build_loss(self) -> nn.Module:
        """Takes (outputs, target_bzyx, supervised_bc), gives a loss per sample; targets may be `IGNORED`.

        Where organs are regions, a part of it has an attribute `organs`, `task.labels.regions`: it knows of them.
        """
        labels = self.task.labels
        size_power = usual_size_power(labels.count) if self._counts_roots else 1.0
        return DeepSupervisionLoss(SegmentationLoss(labels.regions, size_power=size_power))

    def build_optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        """Of the network; groups with different learning rates keep their ratios to `recipe.learning_rate`."""
        return build_optimizer(recipe, list(self.network.parameters()))

    def build_augmentation(self, strength: str) -> Augmentation | None:
        """The augmentation for cases that ask for this strength."""
        if strength == "none":
            return None
        plan, permutation = self.task.plan, self.task.labels.mirror_permutation
        return Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, strength, self.mirror_axes, permutation)

    def build_stopwatch(self) -> AbstractContextManager[Callable[[], float]]:
        """The clock of a time budget, in seconds."""
        return RunningTime() if self.config.time_budget_seconds is not None else nullcontext(time.monotonic)

    def build_sampler(self) -> Samples:
        """The source of the samples: `sampler[(iteration, position in the global batch)]` is a `Batch` of one."""
        return self.case_sampler(self.training_cases())

    @property
    def samples_per_step(self) -> int:
        """Samples of this rank in every step."""
        return self.batch_size

    def after_step(self) -> None:
        """Called after every step of the optimizer, when `averaged_network` has been updated."""

    def own_state(self) -> dict:
        """The state that a resumed training needs besides weights, optimizer and iteration: tensors, numbers, texts."""
        return {}

    def load_own_state(self, state: dict) -> None:
        """Takes up what `own_state` gave."""

    def training_step(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Forward pass and loss of a batch; a scalar to differentiate."""
        with self.clock("transfer"):
            image = torch.as_tensor(batch.image_bczyx).to(self.device, non_blocking=True)
            target = torch.as_tensor(batch.label_bzyx).to(self.device, non_blocking=True).long()
            supervised = torch.from_numpy(batch.supervised_bc).to(self.device)
            weight = torch.from_numpy(batch.weight_b).to(self.device)
        with self.clock("forward"), self.precision.autocast():
            outputs = network(image)
        with self.clock("loss"):
            outputs = outputs if isinstance(outputs, list) else [outputs]
            return (self.loss(outputs, target, supervised) * weight).mean()

    # The loop.

    @failures_told()
    def fit(self, *, resume: bool = False) -> bool:
        """Trains to the end.

        Args:
            resume: Go on from the folder's latest checkpoint.

        Returns:
            True when the training is complete, False when it was asked to stop before; its state is saved then.

        Raises:
            ConfigError: the folder holds another training, or there is nothing to resume.
            CheckpointError: the latest checkpoint is damaged or belongs to other plans.
            FlaresemiError: the loss became NaN or infinite.
        """
        self.start = self.first_weights() if self.config.init_from is not None and not resume else None
        tell_gaps(self.task, mirrors=2 in self._wanted_axes, enabled=self.ranks.is_main)
        with self.build_stopwatch() as now:
            self.budget = TimeBudget(self.config.time_budget_seconds or math.inf, now)
            self._equip(self._settle(resume))
            if resume:
                self._load_state()
            elif self.ranks.is_main:
                cut_history(self.task.folder.history, 0)  # of a training that was killed before it saved anything
            monitor = Monitor(
                self.task.folder,
                self.iteration,
                enabled=self.ranks.is_main,
                track=self.config.track,
                title=self.task.title,
                facts={
                    "dataset": self.task.dataset,
                    "stage": self.task.plan.stage.value,
                    "fold": self.task.fold,
                    **to_plain(self.config),  # type: ignore[dict-item]
                },
            )
            try:
                return self._train(monitor)
            finally:
                monitor.close()

    def _train(self, monitor: Monitor) -> bool:
        """The steps that are left; whether the training is complete."""
        saved_at = epoch_started = time.monotonic()
        first, last = self.iteration, self.schedule.total_iterations
        batches = self._batches(first, ENDLESS if self.budget.decides and first < last else last)
        bar = progress(batches, self.task, first, last, enabled=self.ranks.is_main)
        for batch in bar:
            self._optimize(self._loss_of(batch))
            for percent in self.schedule.percents(self.iteration, self.config.snapshot_percents):
                self._save_snapshot(percent)
            if self.schedule.ends_epoch(self.iteration):
                with self.budget.aside("validation" if self._is_validating else "epoch"):
                    monitor.add(self._end_epoch(time.monotonic() - epoch_started))
                    self.ranks.barrier()  # which waits as long as the first one validates and draws
                epoch_started = time.monotonic()
            stop = self.ranks.any(self.stop_requested())
            if stop or self.ranks.any(time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes):
                with self.budget.aside("checkpoint"):
                    self._save_latest()
                saved_at = time.monotonic()
            if self.iteration >= self.schedule.total_iterations:
                break
            if stop:
                return False
            if self.budget.decides:
                self._keep_to_budget()
                bar.total = self.schedule.total_iterations
        if self.iteration == first:  # it was complete, but its final weights are lost
            if self.ranks.is_main:
                self._save_final()
            self.ranks.barrier()
        self._save_latest()
        return True

    def _loss_of(self, batch: Batch | ReadBatch) -> torch.Tensor:
        if isinstance(batch, ReadBatch):
            batch = self._augment(batch, self.clock)
        return self.training_step(self._runnable, batch)

    def _optimize(self, loss: torch.Tensor) -> None:
        rate = self.schedule.learning_rate(self.iteration)
        self.iteration += 1
        self.optimization.step(loss, rate, self.iteration, self.clock)
        self.after_step()
        self.epoch_losses.append(loss.detach())

    def _end_epoch(self, seconds: float) -> Row:
        loss = float(self.ranks.mean(torch.stack(self.epoch_losses)).mean())  # in this order, as a resumed run does
        epoch_iterations = len(self.epoch_losses)
        self.epoch_losses = []
        self._refuse_not_finite(loss)
        row: Row = {
            "iteration": self.iteration,
            "epoch": self.schedule.epochs_done(self.iteration),
            "loss": loss,
            "learning_rate": self.schedule.learning_rate(self.iteration - 1),
            "seconds": round(seconds, 3),
            "patches_per_second": round(epoch_iterations * self.samples_per_step * self.ranks.world_size / seconds, 3),
        }
        if self.ranks.is_main:
            if self._is_validating:
                row |= self._validate()
            append_row(self.task.folder.history, row)
        return row

    def _refuse_not_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FlaresemiError(
                f"the loss is {loss} in the epoch up to iteration {self.iteration}",
                where=self.task.folder.root,
                fix="choose a lower --learning-rate or --precision fp32 and start again with --restart",
            )

    @property
    def _is_validating(self) -> bool:
        return self.schedule.is_validating(self.iteration, self._validations)

    def _validate(self) -> Row:
        cases = self.task.validation[: self.config.validation_cases or None]
        dice = quick_validation(
            self.averaged_network, self.task.store, cases, self.task.plan, self.task.labels, self.device, self.precision
        )
        mean = sum(dice.values()) / len(dice) if dice else 0.0
        if mean > self.best_validation:
            self.best_validation = mean
            save_checkpoint(self.task.folder.best, self._checkpoint())
        return {"validation_dice": dice, "validation_mean": mean}

    def _batches(self, first: int, last: int) -> Iterator[Batch | ReadBatch]:
        rank, count = self.ranks.rank, self.samples_per_step
        positions = range(rank * count, (rank + 1) * count)
        addresses = AddressSampler(range(first, last), positions)
        return load_batches(self.sampler, addresses, self.loader_workers, pin=self.device.type == "cuda")

    @property
    def loader_workers(self) -> int:
        """Processes that prepare patches for this rank."""
        asked = self.config.loader_workers
        return usual_workers(self.device, self.ranks.world_size) if asked is None else asked

    def case_sampler(
        self, cases: Sequence[TrainingCase], *, kind: type[PatchSampler] = PatchSampler, **settings: Any
    ) -> PatchSampler:
        """Random patches of these cases, as this training draws and augments them.

        Args:
            settings: Of the sampler, besides those that follow from the training.
        """
        strengths = sorted({case.augmentation for case in cases} - {"none"})
        augmentations = {strength: self.build_augmentation(strength) for strength in strengths}
        others = [strength for strength, made in augmentations.items() if not is_drawn(made)]
        if others and self.augments_on_device:
            logger.info("augmentation %s has transforms of its own, and is computed on the CPU", listed(others))
        return kind(
            store=self.task.store,
            cases=cases,
            plan=self.task.plan,
            foreground_share=self.config.foreground_share,
            region_jitter_mm=self.config.region_jitter_mm,
            outside_share=self.config.outside_share,
            organs=self.task.labels.regions,
            augmentations={strength: made for strength, made in augmentations.items() if made is not None},
            **({"seed": self.config.seed} | ({"on_device": True} if self.augments_on_device else {}) | settings),
        )

    @property
    def averaged_network(self) -> nn.Module:
        """The network with the averaged weights, always the newest: to run, as a teacher, not to train.

        Without averaging (`ema_decay` 0) it has the weights of the network itself.
        """
        return self.optimization.averaged_network

    @functools.cached_property
    def _runnable(self) -> nn.Module:
        """The network of the forward pass, compiled and wrapped as this training asks for."""
        network, plan = self.network, self.task.plan
        if self.config.compile:
            shape = (self.samples_per_step, plan.network.input_channels, *plan.patch_zyx)
            example = torch.zeros(shape, device=self.device)
            network = compiled(network, example, self.precision)
        return self.ranks.share_gradients(network, self.device)

    def _equip(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.optimization = Optimization(
            self.network,
            self.build_optimizer(schedule.recipe),
            self.precision,
            learning_rate=schedule.recipe.learning_rate,
            gradient_clip=self.config.gradient_clip,
            ema_decay=self.config.ema_decay,
        )

    # Length, record and state.

    def _settle(self, resume: bool) -> Schedule:
        """Fixes the length of the run and writes, or reads back, its record."""
        record = runs.recorded_run(self.task) if resume else None
        cases = tuple(case.case_id for case in self.sampler.cases)
        strengths = {case.augmentation for case in self.sampler.cases}
        packages = runs.used_packages(type(self), self.task.plan.network.architecture, strengths)
        if record is not None:
            total = self.config.fixed_iterations if self.config != record.config else record.recipe.total_iterations
            record = runs.gone_on(
                self.task,
                record,
                self.config,
                total or record.recipe.total_iterations,
                cases=cases,
                writes=self.ranks.is_main,
                device=device_name(self.device),
                processes=self.ranks.world_size,
                precision=self.precision.name,
                augmented_on="device" if self.augments_on_device else "cpu",
                decisions=record.decisions if self.budget.decides else (),
                packages=packages,
            )
        else:
            schedule = self._schedule_anew(resume)
            record = runs.RunRecord.begin(
                self.task,
                self.config,
                schedule.recipe,
                decisions=schedule.decisions,
                command=self.command,
                training_cases=cases,
                device=device_name(self.device),
                trainer=type(self).__name__,
                started_from=self.start,
                processes=self.ranks.world_size,
                precision=self.precision.name,
                augmented_on="device" if self.augments_on_device else "cpu",
                packages=packages,
            )
        if self.ranks.is_main:
            save_record(self.task.folder.run_record, record)
        return record.schedule

    def _schedule_anew(self, resume: bool) -> Schedule:
        """That of a training without a record: a new one, or one that has lost it."""
        if self.config.fixed_iterations:
            if resume:
                refuse_fewer(load_state(self.task.folder), self.config.fixed_iterations, self.task.folder)
            return Schedule(self._resolve(self.config.fixed_iterations))
        if resume:
            return kept_schedule(load_state(self.task.folder, with_training_state=True), self._resolve)
        iterations = self.budget.first_estimate(self.rehearse(TIMED_STEPS), self.ranks)
        return self.budget.first_schedule(iterations, self._resolve)

    def _resolve(self, total_iterations: int) -> Recipe:
        return resolve(self.config, total_iterations, self.task.plan.network.features[0])

    def _keep_to_budget(self) -> None:
        """Gives the training another number of steps where the budget asks for it; the main process decides."""
        total = self.budget.decide(self.schedule, self.iteration, self._validations) if self.ranks.is_main else 0
        total = self.ranks.of_main(total)
        if total:
            self.schedule = self.schedule.decided(self.iteration, total)
            if self.ranks.is_main:
                runs.record_decisions(self.task, self.schedule.decisions)

    def rehearse(self, steps: int) -> Generator[tuple[Batch | ReadBatch, float], None, None]:
        """Runs the first steps of the training, from its first weights, and undoes them, also when it is closed early.

        Yields:
            After every step its batch and its seconds, from the wait for the data to the end of all computation.
        """
        weights, scaler = copy.deepcopy(self.network.state_dict()), self.precision.scaler.state_dict()
        own = copy.deepcopy(self.own_state())
        self._equip(Schedule(self._resolve(self.config.fixed_iterations or steps)))
        batches = self._batches(0, steps)
        try:
            for _ in range(steps):
                start = time.monotonic()
                with self.clock("wait"):
                    batch = next(batches)
                self._optimize(self._loss_of(batch))
                synchronize(self.device)
                yield batch, time.monotonic() - start
        finally:
            self.network.load_state_dict(weights)
            self.precision.scaler.load_state_dict(scaler)
            self.load_own_state(own)
            self.iteration, self.epoch_losses = 0, []

    def _save_snapshot(self, percent: int) -> None:
        if self.ranks.is_main:
            with self.budget.aside("checkpoint"):
                if percent == 100:
                    self._save_final()
                else:
                    save_checkpoint(self.task.folder.snapshot(percent), self._checkpoint())
        if percent == 100:
            self.ranks.barrier()

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes that patches are flipped on."""
        return self.task.labels.mirror_axes(self._wanted_axes)

    @functools.cached_property
    def _wanted_axes(self) -> tuple[int, ...]:
        """Axes that the user or the anatomy asks for, whether or not the sides of all organs are known."""
        if self.config.mirror_axes is not None:
            return self.config.mirror_axes
        task = self.task
        pair = anatomy.one_sided(task.store, task.training, task.labels, voxel_mm=task.plan.spacing_zyx_mm[2])
        if pair is None:
            return (2,)
        logger.info("patients are not mirrored: %s always lies to the same side of %s", *pair)
        return ()

    def _save_final(self) -> None:
        """Saves the final weights, with what the labeled cases tell of pieces, until a validation decides by its gain.

        To look at all labeled cases takes a while: no other checkpoint, of which one may be saved in a hurry, has it.
        """
        store, cases, labels = self.task.store, self.task.training, self.task.labels
        final = dataclasses.replace(
            self._checkpoint(),
            keep_largest=anatomy.organs_in_one_piece(store, cases, labels),
            touching=anatomy.organs_that_touch(store, cases, labels),
        )
        save_checkpoint(self.task.folder.final, final)

    def _checkpoint(self, training_state: dict | None = None) -> Checkpoint:
        task = self.task
        return Checkpoint(
            plan=task.plan,
            body=task.body,
            channels=task.channels,
            labels=task.labels,
            fold=task.fold,
            iteration=self.iteration,
            total_iterations=self.schedule.total_iterations,
            norms=task.norms,
            weights={name: value.detach().cpu().clone() for name, value in self.optimization.weights.items()},
            mirror_axes=self.mirror_axes,
            quarter_turns=task.plan.quarter_turns and not self._knows_turns,
            training_state=training_state,
        )

    def _save_latest(self) -> None:
        losses = torch.stack(self.epoch_losses) if self.epoch_losses else torch.zeros(0, device=self.device)
        losses = self.ranks.mean(losses)
        if len(losses):  # an epoch may take longer than both saved states are old
            self._refuse_not_finite(float(losses.mean()))
        if not self.ranks.is_main:
            return
        state = {
            **self.optimization.state(),
            "epoch_losses": losses.cpu(),
            "best_validation": self.best_validation,
            "own": self.own_state(),
            "config": json.dumps(to_plain(self.config)),
            "made_from": json.dumps(to_plain(self.task.made_from)),
            "taught_by": json.dumps(to_plain(self.task.taught_by)),
            **self.budget.state(self.schedule),
        }
        save_state(self.task.folder, self._checkpoint(state))
        logger.debug("saved %s at iteration %d", self.task.folder.latest, self.iteration)

    def _load_state(self) -> None:
        checkpoint, state = runs.load_latest(self.task)
        self.optimization.load(state, checkpoint.weights)
        self.load_own_state(state.get("own", {}))
        self.epoch_losses = list(state["epoch_losses"].to(self.device))
        self.best_validation = state["best_validation"]
        self.iteration = checkpoint.iteration
        self.budget = self.budget.resumed(checkpoint)
        if self.ranks.is_main:
            cut_history(self.task.folder.history, self.iteration)
        self.ranks.barrier()
        logger.info("going on from iteration %d of %d", self.iteration, self.schedule.total_iterations)


def _refuse_other_organs(loss: nn.Module, organs: Members | None, trainer: str) -> None:
    """Checks that a loss knows which indices make up the organs.

    Raises:
        ConfigError: it does not say so.
    """
    if not any(getattr(part, "organs", None) == organs for part in loss.modules()):
        raise ConfigError(
            f"the loss of trainer '{trainer}' does not know of regions, and this dataset has some",
            fix="train with another; its author gives the loss an attribute `organs` (docs/extending.md)",
        )
