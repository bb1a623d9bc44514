"""The configuration of a training: one record, every field a flag of flaresemi_train."""

import dataclasses
from typing import Annotated, Literal

import torch

from flaresemi.errors import ConfigError
from flaresemi.machine import total_memory_gib
from flaresemi.networks.cost import training_memory_gib
from flaresemi.plans import NetworkArgument, StagePlan
from flaresemi.ranges import (
    AtLeastOne,
    Axis,
    Few,
    Iterations,
    IterationsSoFar,
    Range,
    Seed,
    Share,
    ShareBelowOne,
    check_ranges,
)
from flaresemi.records import CAME_LATER

#: nnU-Net's training length (1000 epochs of 250 iterations), the default here.
DEFAULT_ITERATIONS = 250_000
EPOCH_ITERATIONS = 250
#: Trainings shorter than this use Muon: SGD with momentum 0.99 has not yet learned anything useful by then.
SHORT_TRAINING = 50_000

_RATE_OF_ONE_FEATURE = 0.064

#: What may become another while a training goes on: its length, how the machine computes it, what is told of it. The
#: rest decided the steps so far.
MAY_CHANGE = frozenset(
    {
        "epochs",
        "iterations",
        "time_budget_seconds",
        "iterations_per_epoch",
        "validations",
        "validation_cases",
        "checkpoint_minutes",
        "precision",
        "loader_workers",
        "augmentation_device",
        "compile",
        "track",
    }
)

#: A step that is estimated to need more than so many times the memory there is does not begin. Chosen: the estimate
#: is for bf16 on a GPU, and swap may help.
_HOPELESS = 3

LearningRate = Annotated[float, Range(0, 100, above=True)]


#: Who keeps the numbers of a training besides TensorBoard.
TrackerName = Literal["none", "mlflow", "wandb", "wandb-online"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Choices of one training.

    Lengths: at most one of `epochs`, `iterations` and `time_budget_seconds` may be set; none: 250,000 iterations.

    Attributes:
        epochs: Length in epochs of `iterations_per_epoch`.
        iterations: Length in optimizer steps.
        time_budget_seconds: Length in wall-clock time, of a process that runs; see `TimeBudget`.
        iterations_per_epoch: What counts as an epoch (a line of the history, a point of the curves); None: 250, or a
            twentieth of a training that has fewer than 20 of those.
        batch_size: Patches per step over all ranks; None: the plan's.
        optimizer: `auto`: muon below 50,000 iterations, else sgd.
        learning_rate: Peak; None: 0.01 for sgd (nnU-Net), 0.064 / (features of the first level) for muon and adamw,
            0.004 for 16 of them (measured with adamw; see docs/training.md).
        weight_decay: None: 3e-5 for sgd, 0.01 for the others.
        warmup_iterations: Linear rise at the start; None: none for sgd, a twentieth of the length but at most 200 for
            the others.
        gradient_clip: Largest norm of all gradients together.
        ema_decay: Of the averaged weights that validation, snapshots and prediction use; 0: off. It is lowered early
            in a training, so that short ones are not held back by their first steps.
        deep_supervision: Losses on the lower decoder levels too.
        foreground_share: Share of patches that are centered on a voxel of a (uniformly drawn) annotated organ.
        region_jitter_mm: FINE in the organs' box: each face of the box moves by up to this much, as COARSE will err.
        outside_share: FINE in the organs' box: share of patches from anywhere in the body, so that FINE knows what lies
            about a box that is too large or in the wrong place, and the body where COARSE found nothing.
        augmentation: `none`, `standard` (nnU-Net's strengths), `strong`, or a name that an installed package declares.
        augmentation_device: Where patches are augmented: `cpu`, by the loader's processes; `device`, where the network
            is; `auto`: there, if it is a GPU.
        mirror_axes: Axes that patches are flipped on: 0 z, 1 y, 2 x. Flipping x swaps left and right organs. None: x,
            where left and right of the labeled anatomy are alike but for paired organs.
        validations: Cheap validations spread over the training; 0: none.
        validation_cases: Cases of the fold that the cheap validation looks at; 0: all.
        snapshot_percents: Parts of the training after which weights are kept.
        checkpoint_minutes: Time between two saves of the whole state.
        precision: Mixed precision; `auto` chooses by the device.
        loader_workers: Processes that prepare patches; None: by the device; 0: in the training process itself.
        compile: Run the network through torch.compile, where that works.
        init_from: Model whose weights the training starts from, as far as they fit; None: random ones.
        seed: Everything random follows from it.
        trainer: Who trains: `default`, a name that an installed package has declared, or `package.module:Class`.
        trainer_settings: Fields of the trainer's own `Settings`, by name.
        track: Who keeps the numbers of every epoch besides TensorBoard.
    """

    epochs: AtLeastOne | None = None
    iterations: Iterations | None = None
    time_budget_seconds: Annotated[float, Range(0, 1e8, above=True)] | None = None
    iterations_per_epoch: Iterations | None = None
    batch_size: AtLeastOne | None = None
    optimizer: Literal["auto", "sgd", "adamw", "muon"] = "auto"
    learning_rate: LearningRate | None = None
    weight_decay: Share | None = None
    warmup_iterations: IterationsSoFar | None = None
    gradient_clip: Annotated[float, Range(0, 1e6, above=True)] = 12.0
    ema_decay: ShareBelowOne = 0.999
    deep_supervision: bool = True
    foreground_share: Share = 0.5
    region_jitter_mm: Annotated[float, Range(0, 500)] = 10.0
    outside_share: Share = 0.1
    augmentation: str = "standard"
    mirror_axes: tuple[Axis, ...] | None = None
    validations: Few = 10
    validation_cases: Few = 8
    snapshot_percents: tuple[Annotated[int, Range(1, 100)], ...] = (36, 66, 100)
    checkpoint_minutes: Annotated[float, Range(0, 1e6)] = 10.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    loader_workers: Annotated[int, Range(0, 1024)] | None = None
    compile: bool = False
    init_from: str | None = None
    seed: Seed = 0
    trainer: str = dataclasses.field(default="default", metadata=CAME_LATER)
    trainer_settings: dict[str, NetworkArgument] = dataclasses.field(default_factory=dict, metadata=CAME_LATER)
    track: TrackerName = dataclasses.field(default="none", metadata=CAME_LATER)
    augmentation_device: Literal["auto", "cpu", "device"] = dataclasses.field(
        default="auto", metadata=CAME_LATER | {"before": "cpu"}
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        lengths = [self.epochs, self.iterations, self.time_budget_seconds]
        if sum(length is not None for length in lengths) > 1:
            raise ValueError("choose one of epochs, iterations and time_budget_seconds")
        if 100 not in self.snapshot_percents:
            raise ValueError("snapshot_percents must include 100")

    @property
    def fixed_iterations(self) -> int | None:
        """The number of steps, unless a time budget decides it."""
        if self.time_budget_seconds is not None:
            return None
        if self.epochs is not None:
            return self.epochs * (self.iterations_per_epoch or EPOCH_ITERATIONS)
        return self.iterations or DEFAULT_ITERATIONS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A config with everything `auto` resolved for a known number of iterations."""

    total_iterations: Iterations
    iterations_per_epoch: Iterations
    optimizer: Literal["sgd", "adamw", "muon"]
    learning_rate: LearningRate
    weight_decay: Share
    warmup_iterations: IterationsSoFar


def resolve(config: TrainingConfig, total_iterations: int, features: int = 16) -> Recipe:
    """Fills in what follows from the length of the training and the width of the network.

    Args:
        features: Of the network's first level. Adam's best rate falls in proportion to the width (arXiv 2203.03466).
    """
    optimizer = config.optimizer
    if optimizer == "auto":
        optimizer = "muon" if total_iterations < SHORT_TRAINING else "sgd"
    sgd = optimizer == "sgd"
    warmup = config.warmup_iterations
    if warmup is None:
        warmup = 0 if sgd else min(total_iterations // 20, 200)
    return Recipe(
        total_iterations=total_iterations,
        iterations_per_epoch=_epoch_length(config, total_iterations),
        optimizer=optimizer,
        learning_rate=config.learning_rate or (1e-2 if sgd else _RATE_OF_ONE_FEATURE / features),
        weight_decay=config.weight_decay if config.weight_decay is not None else (3e-5 if sgd else 1e-2),
        warmup_iterations=warmup,
    )


def lengthened(recipe: Recipe, config: TrainingConfig, total_iterations: int) -> Recipe:
    """The recipe of a training that goes on for another number of steps, with the same optimizer."""
    if total_iterations == recipe.total_iterations and config.iterations_per_epoch in (
        None,
        recipe.iterations_per_epoch,
    ):
        return recipe
    return dataclasses.replace(
        recipe, total_iterations=total_iterations, iterations_per_epoch=_epoch_length(config, total_iterations)
    )


def _epoch_length(config: TrainingConfig, total_iterations: int) -> int:
    if config.iterations_per_epoch is not None:
        return config.iterations_per_epoch
    if config.epochs is not None:
        return EPOCH_ITERATIONS
    return min(EPOCH_ITERATIONS, max(total_iterations // 20, 1))


def refuse_beyond_memory(plan: StagePlan, batch_size: int, device: torch.device) -> None:
    """Checks that a training step may fit into memory at all.

    Args:
        batch_size: Patches per step on this device.

    Raises:
        ConfigError: it needs several times what there is.
    """
    needed = training_memory_gib(plan.network, plan.patch_zyx, batch_size)
    there = total_memory_gib()
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory / 2**30
    if needed > _HOPELESS * there:
        raise ConfigError(
            f"a training step of {plan.stage.value} needs about {needed:.3g} GiB of memory, there are {there:.3g}: "
            f"batch {batch_size}, patch {list(plan.patch_zyx)}, features {list(plan.network.features)}",
            fix="correct them in plans.json, or make new plans: flaresemi_plan_and_preprocess --replan",
        )


def local_batch_size(config: TrainingConfig, planned: int, world_size: int) -> int:
    """Patches per rank and step.

    Raises:
        ConfigError: the batch does not divide evenly among the ranks.
    """
    batch = config.batch_size or planned
    if batch % world_size:
        raise ConfigError(
            f"a batch of {batch} does not divide among {world_size} processes",
            fix=f"choose --batch-size {max(batch // world_size, 1) * world_size}, or another number of GPUs",
        )
    return batch // world_size
