"""flaresemi's half of the comparisons: one piece of work per process."""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flaresemi import __version__
from flaresemi.compute.allocation import keep_freed_memory
from flaresemi.compute.precision import Precision
from flaresemi.geometry import BoundingBox, resampled_shape
from flaresemi.inference import cascade
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.io.images import Image, read_image, read_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import load_checkpoint, save_checkpoint
from flaresemi.plans import IntensityPlan, NetworkPlan, Stage, StagePlan
from flaresemi.preprocessing.preprocessor import PreparedImage, prepare, preprocessing_hash, stage_labels
from flaresemi.preprocessing.resampling import resample_labels, resample_part
from flaresemi.training import profiling
from flaresemi.training.config import TrainingConfig, resolve
from flaresemi.training.losses import DeepSupervisionLoss, SegmentationLoss
from flaresemi.training.schedule import AveragedWeights, build_optimizer
from flaresemi.training.task import load_task
from flaresemi.training.trainer import Trainer
from flaresemi.workspace import Workspace
from measuring import peak_rss_mib, random_batch, report


def preprocess(task: dict) -> dict:
    """From arrays in memory to the files that training reads: body, normalization, resampling, voxel lists, writing."""
    image, indices, labels = _read(task)
    plan = _stage_plan(task)
    with tempfile.TemporaryDirectory() as folder:
        store = CaseStore(Path(folder))
        before, started = peak_rss_mib(), time.perf_counter()
        prepared = prepare(image, "ct")
        grid = prepared.grid(plan)
        stage_image = prepared.stage_image(plan)
        common = {"case_id": "case", "preprocessing_hash": preprocessing_hash("ct", plan), "grid": grid}
        if indices is None or labels is None:
            store.write(CaseRecord.unlabeled(**common), stage_image, None)
        else:
            stage_label = stage_labels(indices, grid)
            supervised = tuple(range(1, labels.count + 1))
            record = CaseRecord.labeled(**common, label_zyx=stage_label, organs=labels.count, supervised=supervised)
            store.write(record, stage_image, stage_label)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "rss_before_mib": before, "shape": list(grid.shape_zyx)}


def resample(task: dict) -> dict:
    """Resampling alone, of the whole volume, image and label."""
    image, indices, _ = _read(task)
    spacing, target = image.geometry.spacing_zyx_mm, tuple(task["spacing_zyx_mm"])
    shape = resampled_shape(image.geometry.shape_zyx, spacing, target)
    before, started = peak_rss_mib(), time.perf_counter()
    whole = image.geometry.shape_zyx
    resample_part(image.array_czyx, BoundingBox.whole(whole), whole, shape, kind=task["resampling"])
    if indices is not None:
        resample_labels(indices, shape)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rss_before_mib": before, "shape": list(shape)}


def train(task: dict) -> dict:
    """The trainer's step with its defaults: Dice + cross-entropy with deep supervision, AdamW, averaged weights."""
    torch.manual_seed(0)
    network = build_network(_network_plan(task))
    network.deep_supervision = True
    loss = DeepSupervisionLoss(SegmentationLoss())
    optimizer = build_optimizer(resolve(TrainingConfig(), 1000), list(network.parameters()))
    average = AveragedWeights(network, TrainingConfig().ema_decay)
    precision = Precision(torch.device("cpu"), task["precision"])
    image, label = (torch.from_numpy(array) for array in random_batch(task))
    supervised = torch.ones(task["batch"], task["classes"], dtype=torch.bool)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            outputs = network(image)
        value = loss(outputs, label, supervised).mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        average.update(network, number)
        value.item()

    parameters = sum(parameter.numel() for parameter in network.parameters())
    before = peak_rss_mib()
    step(1)
    started = time.perf_counter()
    for number in range(task["steps"]):
        step(number + 2)
    seconds = (time.perf_counter() - started) / task["steps"]
    return {"seconds": seconds, "rss_before_mib": before, "parameters": parameters, "precision": precision.name}


def train_loop(task: dict) -> dict:
    """What `flaresemi_train FINE all --profile` runs: the trainer's own loop and loader, a clock about every part."""
    keep_freed_memory()
    profiling.WARM_UP_STEPS = task["warm_up"]
    config = TrainingConfig(
        precision=task["precision"], compile=task["compile"], loader_workers=task["workers"], mirror_axes=(0, 1, 2)
    )
    learned = load_task(Workspace(Path(task["workspace"])), Stage.FINE, "all")
    trainer = Trainer(learned, config, device=torch.device("cpu"))
    told = profiling.profile(trainer, task["steps"])
    return {
        "seconds": told.seconds,
        "patches": told.batch_size,
        "wait_share": told.parts["wait"] / told.seconds,
        "network_share": told.network_share,
        "parts": told.parts,
        "read": told.read,
        "augment": told.augment,
        "table": told.table(),
        "precision": trainer.precision.name,
        "shape": [told.batch_size, learned.plan.network.input_channels, *learned.plan.patch_zyx],
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
    }


def convolutions(task: dict) -> dict:
    """The convolutions of a training step, one at a time in fp32: no norm, activation, loss or optimizer.

    Forward and backward each count in the faster of torch's two memory layouts, the fastest of three calls.
    """
    keep_freed_memory()
    network, image = build_network(_network_plan(task)), torch.randn(task["batch"], 1, *task["patch_zyx"])
    network.deep_supervision = True
    inputs: list[tuple[nn.Module, torch.Tensor]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            layer.register_forward_pre_hook(lambda layer, given: inputs.append((layer, torch.empty_like(given[0]))))
    with torch.no_grad():
        network(image)
    seconds = sum(map(_fastest_both_ways, *zip(*inputs, strict=True)))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "seconds": seconds,
        "patches": task["batch"],
        "wait_share": 0.0,
        "precision": "fp32",
        "shape": list(image.shape),
        "parameters": parameters,
    }


def _fastest_both_ways(layer: nn.Module, given: torch.Tensor) -> float:
    """Seconds of a convolution's forward and backward; the first layer needs no gradient of its input."""
    forward, backward = [], []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        layer.to(memory_format=layout)  # type: ignore[call-overload]
        features = torch.randn(given.shape).to(memory_format=layout).requires_grad_(given.shape[1] > 1)
        for _ in range(4):
            started = time.perf_counter()
            output = layer(features)
            forward.append(time.perf_counter() - started)
            gradient = torch.ones_like(output)
            started = time.perf_counter()
            output.backward(gradient)
            backward.append(time.perf_counter() - started)
            features.grad = None
            layer.zero_grad()
    return min(forward) + min(backward)


def model(task: dict) -> dict:
    """FINE as training leaves it, with random weights and a bias of the background, beside a COARSE that is trained."""
    torch.manual_seed(0)
    plan = _stage_plan(task)
    network = build_network(plan.network)
    with torch.no_grad():
        network.heads[0].bias[0] += task["background_bias"]
    coarse = load_checkpoint(Path(task["coarse"]) / "fold_0" / "COARSE" / "snapshot_100.pt")
    checkpoint = dataclasses.replace(coarse, plan=plan, weights=network.state_dict(), keep_largest=())
    for stage, content in (("FINE", checkpoint), ("COARSE", coarse)):
        save_checkpoint(Path(task["folder"]) / "fold_0" / stage / "snapshot_100.pt", content)
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def predict_whole(task: dict) -> dict:
    """Prediction over the whole image, air and all, in windows of the training patch: the windows of nnU-Net."""
    cascade.prepare = _prepare_whole
    fine = load_checkpoint(Path(task["model"]) / "fold_0" / "FINE" / "snapshot_100.pt")
    segmenter = cascade.Segmenter([fine], window="patch")
    segmentation = segmenter.predict_file([Path(task["image"])], Path(task["output"]))
    return {"steps": segmentation.seconds}


def _prepare_whole(image: Image, body: str, _: torch.device | None = None) -> PreparedImage:
    found = prepare(image, body)
    whole = BoundingBox.whole(image.geometry.shape_zyx)
    mask = np.ones(whole.shape_zyx, bool)
    return PreparedImage(found.image, whole, mask)


def _read(task: dict) -> tuple[Image, np.ndarray | None, LabelSet | None]:
    image = read_image([Path(task["image"])])
    if not task["label"]:
        return image, None, None
    values = read_label_map(Path(task["label"])).array_zyx
    found = [int(value) for value in np.unique(values) if value > 0]
    labels = LabelSet(labels=tuple(Label(name=f"label {value}", value=value) for value in found))
    return image, labels.to_indices(values), labels


def _network_plan(task: dict) -> NetworkPlan:
    return NetworkPlan(
        block="plain",
        input_channels=1,
        output_channels=task["classes"],
        features=tuple(task["features"]),
        kernels=tuple(tuple(kernel) for kernel in task["kernels"]),
        strides=tuple(tuple(stride) for stride in task["strides"]),
        encoder_convs=tuple(task["encoder_convs"]),
        decoder_convs=tuple(task["decoder_convs"]),
    )


def _stage_plan(task: dict) -> StagePlan:
    """Without a network in the task, any one will do: preprocessing does not ask for it."""
    any_network = {
        "features": (1, 1),
        "kernels": ((3, 3, 3),) * 2,
        "strides": ((1, 1, 1), (2, 2, 2)),
        "encoder_convs": (1, 1),
        "decoder_convs": (1,),
        "classes": 2,
        "patch_zyx": (64, 64, 64),
        "resampling": "linear",
    }
    task = {**any_network, **task}
    intensity = IntensityPlan(
        scheme="ct", clip_low=task["clip_low"], clip_high=task["clip_high"], mean=task["mean"], sd=task["sd"]
    )
    return StagePlan(
        stage=Stage.FINE,
        spacing_zyx_mm=tuple(task["spacing_zyx_mm"]),
        patch_zyx=tuple(task["patch_zyx"]),
        batch_size=2,
        region=task.get("region", "body"),
        margin_mm=20.0,
        resampling=task["resampling"],
        intensities=(intensity,),
        network=_network_plan(task),
        reasons={},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    works = (preprocess, resample, train, train_loop, convolutions, model, predict_whole)
    named = {work.__name__: work for work in works}
    parser.add_argument("work", choices=list(named))
    parser.add_argument("task", type=json.loads)
    options = parser.parse_args()
    torch.set_num_threads(options.task["threads"])
    report(
        named[options.work](options.task),
        {"flaresemi": __version__, "torch": torch.__version__, "numpy": np.__version__},
    )
