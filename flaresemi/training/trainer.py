"""The training loop. A subclass replaces what it wants to change: each `build_` hook returns something."""

import copy
import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import torch
from torch import nn

from flaresemi.compute.device import device_name, synchronize
from flaresemi.compute.distributed import Ranks
from flaresemi.compute.metering import Clock, no_clock
from flaresemi.compute.precision import Precision
from flaresemi.errors import ConfigError, FlaresemiError
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from flaresemi.networks.compiling import compiled
from flaresemi.networks.layout import trains_channels_last
from flaresemi.records import save_record, to_plain
from flaresemi.training import runs
from flaresemi.training.augmentation import STRENGTHS, Augmentation
from flaresemi.training.config import Recipe, TrainingConfig, local_batch_size, refuse_beyond_memory, resolve
from flaresemi.training.history import Row, append_row, cut_history
from flaresemi.training.loading import failures_told, load_batches, usual_workers
from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss
from flaresemi.training.monitoring import Monitor, progress, quick_validation
from flaresemi.training.resuming import load_state, save_state
from flaresemi.training.sampling import AddressSampler, Batch, PatchSampler, TrainingCase
from flaresemi.training.schedule import AveragedWeights, build_optimizer, learning_rate
from flaresemi.training.task import TrainingTask, tell_gaps

logger = logging.getLogger(__name__)

_TIMED_STEPS = 6


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
        clock: Stands around the parts of a step: wait, transfer, forward, loss, backward, optimizer.
    """

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
        self.device = device
        self.ranks = ranks
        self.command = command
        self.stop_requested = stop_requested
        self.precision = Precision(device, config.precision)
        self.batch_size = local_batch_size(config, task.plan.batch_size, ranks.world_size)
        refuse_beyond_memory(task.plan, self.batch_size, device)
        self.sampler = self.build_sampler()
        torch.manual_seed(config.seed)
        self.network = self.build_network()
        self.network.to(device)
        self.network.deep_supervision = config.deep_supervision  # type: ignore[assignment]
        self.network.channels_last = trains_channels_last(device, self.precision)  # type: ignore[assignment]
        self.loss = self.build_loss().to(device)
        self.iteration = 0
        self.epoch_losses: list[torch.Tensor] = []
        self.best_validation = -math.inf
        self.clock: Clock = no_clock

    # What a subclass may replace.

    def training_cases(self) -> list[TrainingCase]:
        """The cases to draw from; here: the labeled ones of the fold, each with the organs it annotates."""
        return [
            TrainingCase(
                case_id=case_id,
                supervised=self.task.store.open(case_id).record.supervised,
                augmentation=self.config.augmentation,
            )
            for case_id in self.task.training
        ]

    def build_network(self) -> nn.Module:
        return build_network(self.task.plan.network)

    def build_loss(self) -> nn.Module:
        """Takes (outputs, target_bzyx, supervised_bc), gives a loss per sample."""
        return DeepSupervisionLoss(SegmentationLoss())

    def build_optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        return build_optimizer(recipe, list(self.network.parameters()))

    def build_augmentation(self, strength: str) -> Augmentation | None:
        """The augmentation for cases that ask for this strength."""
        if strength == "none":
            return None
        plan, labels = self.task.plan, self.task.labels
        axes = labels.mirror_axes(self.config.mirror_axes)
        return Augmentation(plan.patch_zyx, plan.spacing_zyx_mm, strength, axes, labels.mirror_permutation)

    def training_step(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Forward pass and loss of a batch; a scalar to differentiate."""
        with self.clock("transfer"):
            image = torch.from_numpy(batch.image_bczyx).to(self.device, non_blocking=True)
            target = torch.from_numpy(batch.label_bzyx).to(self.device, non_blocking=True).long()
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
        if self.config.init_from is not None and not resume:
            load_weights(self.network, load_checkpoint(Path(self.config.init_from)))
        tell_gaps(self.task, mirrors=2 in self.config.mirror_axes, enabled=self.ranks.is_main)
        self._equip(self._settle(resume))
        if resume:
            self._load_state()
        elif self.ranks.is_main:
            cut_history(self.task.folder.history, 0)  # of a training that was killed before it saved anything
        monitor = Monitor(self.task.folder, self.iteration, enabled=self.ranks.is_main)
        saved_at = epoch_started = time.monotonic()
        first, last = self.iteration, self.recipe.total_iterations
        for batch in progress(self._batches(first, last), self.task, first, last, enabled=self.ranks.is_main):
            self._optimize(self.training_step(self._runnable, batch))
            if self.ranks.is_main and (percent := self._snapshots().get(self.iteration)):
                save_checkpoint(self.task.folder.snapshot(percent), self._checkpoint())
            if self.iteration % self.recipe.iterations_per_epoch == 0 or self.iteration == self.recipe.total_iterations:
                monitor.add(self._end_epoch(time.monotonic() - epoch_started))
                epoch_started = time.monotonic()
            stop = self.ranks.any(self.stop_requested(), self.device)
            if stop or self.ranks.any(time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes, self.device):
                self._save_latest()
                saved_at = time.monotonic()
            if stop and self.iteration < self.recipe.total_iterations:
                monitor.close()
                return False
        if self.ranks.is_main and self.iteration == first:  # it was complete, but its final weights are lost
            save_checkpoint(self.task.folder.final, self._checkpoint())
        self._save_latest()
        monitor.close()
        return True

    def _optimize(self, loss: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.iteration)
        with self.clock("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.precision.scaler.scale(loss).backward()
        with self.clock("optimizer"):
            self.precision.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
            self.iteration += 1
            if self.average:
                self.average.update(self.network, self.iteration)
        self.epoch_losses.append(loss.detach())

    def _end_epoch(self, seconds: float) -> Row:
        loss = float(self.ranks.mean(torch.stack(self.epoch_losses)).mean())  # in this order, as a resumed run does
        epoch_iterations = len(self.epoch_losses)
        self.epoch_losses = []
        if not math.isfinite(loss):
            raise FlaresemiError(
                f"the loss is {loss} in the epoch up to iteration {self.iteration}", where=self.task.folder.root,
                fix="choose a lower --learning-rate or --precision fp32 and start again with --restart",
            )  # fmt: skip
        row: Row = {
            "iteration": self.iteration,
            "epoch": self.recipe.epoch_of(self.iteration),
            "loss": loss,
            "learning_rate": learning_rate(self.recipe, self.iteration - 1),
            "seconds": round(seconds, 3),
            "patches_per_second": round(epoch_iterations * self.batch_size * self.ranks.world_size / seconds, 3),
        }
        if self.ranks.is_main:
            if self._validation_due():
                row |= self._validate()
            append_row(self.task.folder.history, row)
        self.ranks.barrier()
        return row

    def _validation_due(self) -> bool:
        epoch, epochs = self.recipe.epoch_of(self.iteration), self.recipe.epoch_of(self.recipe.total_iterations)
        every = max(epochs // self.config.validations, 1) if self.config.validations else 0
        return bool(every and self.task.validation) and (epoch % every == 0 or epoch == epochs)

    def _validate(self) -> Row:
        cases = self.task.validation[: self.config.validation_cases or None]
        network = copy.deepcopy(self.network)
        network.load_state_dict(self._prediction_weights())
        network.deep_supervision = False  # type: ignore[assignment]
        dice = quick_validation(
            network.eval(), self.task.store, cases, self.task.plan, self.task.labels, self.device, self.precision
        )
        mean = sum(dice.values()) / len(dice) if dice else 0.0
        if mean > self.best_validation:
            self.best_validation = mean
            save_checkpoint(self.task.folder.best, self._checkpoint())
        return {"validation_dice": dice, "validation_mean": mean}

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        rank = self.ranks.rank
        positions = range(rank * self.batch_size, (rank + 1) * self.batch_size)
        addresses = AddressSampler(range(first, last), positions)
        return load_batches(self.sampler, addresses, self.loader_workers, pin=self.device.type == "cuda")

    @property
    def loader_workers(self) -> int:
        """Processes that prepare patches for this rank."""
        asked = self.config.loader_workers
        return usual_workers(self.device, self.ranks.world_size) if asked is None else asked

    def build_sampler(self) -> PatchSampler:
        """The random patches that training sees."""
        cases = self.training_cases()
        strengths = {case.augmentation for case in cases} & set(STRENGTHS)
        augmentations = {strength: self.build_augmentation(strength) for strength in sorted(strengths)}
        return PatchSampler(
            self.task.store,
            cases,
            self.task.plan,
            foreground_share=self.config.foreground_share,
            region_jitter_mm=self.config.region_jitter_mm,
            outside_share=self.config.outside_share,
            augmentations={strength: made for strength, made in augmentations.items() if made is not None},
            seed=self.config.seed,
        )

    @functools.cached_property
    def _runnable(self) -> nn.Module:
        """What computes the forward pass: the network, compiled and wrapped as this training asks for."""
        network, plan = self.network, self.task.plan
        if self.config.compile:
            example = torch.zeros(self.batch_size, plan.network.input_channels, *plan.patch_zyx, device=self.device)
            network = compiled(network, example, self.precision)
        return self.ranks.share_gradients(network, self.device)

    def _equip(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.optimizer = self.build_optimizer(recipe)
        self.average = AveragedWeights(self.network, self.config.ema_decay) if self.config.ema_decay else None

    # Length, record and state.

    def _settle(self, resume: bool) -> Recipe:
        """Fixes the length of the run and writes, or reads back, its record."""
        record = runs.recorded_run(self.task) if resume else None
        if record is not None:
            total = self.config.fixed_iterations if self.config != record.config else record.recipe.total_iterations
            recipe = self._resolve(total or record.recipe.total_iterations)
            record = dataclasses.replace(
                record, config=self.config, recipe=recipe, taught_by=self.task.taught_by,
                continued=(*record.continued, runs.now()),
            )  # fmt: skip
        else:
            total = self.config.fixed_iterations or (load_state(self.task.folder).total_iterations if resume else 0)
            recipe = self._resolve(total or self._iterations_in_budget())
            record = runs.RunRecord.begin(
                self.task, self.config, recipe, command=self.command, trainer=type(self).__name__,
                training_cases=tuple(case.case_id for case in self.sampler.cases), device=device_name(self.device),
                processes=self.ranks.world_size, precision=self.precision.name,
            )  # fmt: skip
        if self.ranks.is_main:
            save_record(self.task.folder.run_record, record)
        return recipe

    def _resolve(self, total_iterations: int) -> Recipe:
        return resolve(self.config, total_iterations, self.task.plan.network.features[0])

    def _iterations_in_budget(self) -> int:
        """Times some steps and says how many fit into the time budget."""
        started, seconds = time.monotonic(), [taken for _, taken in self.rehearse(_TIMED_STEPS)]
        # The first steps pay for starting the workers and warming up. A small reserve pays for validation and saving.
        step = sum(sorted(seconds[2:])[:3]) / 3
        left = (self.config.time_budget_seconds or 0.0) - (time.monotonic() - started)
        shared = self.ranks.mean(torch.tensor(max(left, 0.0) * 0.93 / step, device=self.device))
        iterations = max(int(shared), 1)
        logger.info("a step takes %.2f s: %d iterations fit the time budget", step, iterations)
        return iterations

    def rehearse(self, steps: int) -> Generator[tuple[Batch, float], None, None]:
        """Runs the first steps of the training, from its first weights, and undoes them; nothing is written.

        Yields:
            After every step its batch and its seconds, from the wait for the data to the end of all computation.
        """
        weights = copy.deepcopy(self.network.state_dict())
        scaler = self.precision.scaler.state_dict()
        self._equip(self._resolve(self.config.fixed_iterations or steps))
        batches = self._batches(0, steps)
        for _ in range(steps):
            start = time.monotonic()
            with self.clock("wait"):
                batch = next(batches)
            self._optimize(self.training_step(self._runnable, batch))
            synchronize(self.device)
            yield batch, time.monotonic() - start
        self.network.load_state_dict(weights)
        self.precision.scaler.load_state_dict(scaler)
        self.iteration, self.epoch_losses = 0, []

    def _snapshots(self) -> dict[int, int]:
        """Percent by the iteration that it falls on."""
        total = self.recipe.total_iterations
        return {max(1, round(total * percent / 100)): percent for percent in self.config.snapshot_percents}

    def _prediction_weights(self) -> dict[str, torch.Tensor]:
        return self.average.weights if self.average else self.network.state_dict()

    def _checkpoint(self, training_state: dict | None = None) -> Checkpoint:
        return Checkpoint(
            plan=self.task.plan,
            body=self.task.body,
            channels=self.task.channels,
            labels=self.task.labels,
            fold=self.task.fold,
            iteration=self.iteration,
            total_iterations=self.recipe.total_iterations,
            weights={name: value.detach().cpu().clone() for name, value in self._prediction_weights().items()},
            mirror_axes=self.task.labels.mirror_axes(self.config.mirror_axes),
            keep_largest=(),
            training_state=training_state,
        )

    def _save_latest(self) -> None:
        losses = torch.stack(self.epoch_losses) if self.epoch_losses else torch.zeros(0, device=self.device)
        losses = self.ranks.mean(losses)
        if not self.ranks.is_main:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "epoch_losses": losses.cpu(),
            "best_validation": self.best_validation,
            "config": json.dumps(to_plain(self.config)),
            "taught_by": json.dumps(to_plain(self.task.taught_by)),
        }
        save_state(self.task.folder, self._checkpoint(state))
        logger.debug("saved %s at iteration %d", self.task.folder.latest, self.iteration)

    def _load_state(self) -> None:
        checkpoint, state = runs.load_latest(self.task)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch_losses = list(state["epoch_losses"].to(self.device))
        self.best_validation = state["best_validation"]
        self.iteration = checkpoint.iteration
        if self.average:
            self.average.weights = {name: value.to(self.device) for name, value in checkpoint.weights.items()}
        if self.ranks.is_main:
            cut_history(self.task.folder.history, self.iteration)
        self.ranks.barrier()
        logger.info("going on from iteration %d of %d", self.iteration, self.recipe.total_iterations)
