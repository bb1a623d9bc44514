"""nnU-Net's half of the comparisons: one piece of work per process, in nnU-Net's environment. Needs no flaresemi."""

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from measuring import peak_rss_mib, random_batch, report

IMAGE_ORDER = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LABEL_ORDER = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}

DATASET = "Dataset001_Bench"
IDENTIFIER = "plans_3d_fullres"


def preprocess(task: dict) -> dict:
    """DefaultPreprocessor from arrays in memory to the compressed files that training reads."""
    image, label, properties = _read(task)
    labels = {"background": 0, **{f"label {value}": value for value in _values(label)}}
    plans = PlansManager(_plans(task))
    configuration = plans.get_configuration("3d_fullres")
    preprocessor = DefaultPreprocessor(verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        before, started = peak_rss_mib(), time.perf_counter()
        data, segmentation, properties = preprocessor.run_case_npy(
            image, label, properties, plans, configuration, {"labels": labels, "file_ending": ".nii.gz"}
        )
        data, segmentation = data.astype(np.float32, copy=False), segmentation.astype(np.int16, copy=False)
        blocks, chunks = comp_blosc2_params(data.shape, (128, 128, 128), data.itemsize)
        seg_blocks, seg_chunks = comp_blosc2_params(segmentation.shape, (128, 128, 128), segmentation.itemsize)
        nnUNetDatasetBlosc2.save_case(
            data,
            segmentation,
            properties,
            str(Path(folder) / "case"),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=seg_chunks,
            blocks_seg=seg_blocks,
        )
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "rss_before_mib": before, "shape": list(data.shape[1:])}


def resample(task: dict) -> dict:
    """nnU-Net's default resampling functions on the whole volume, image and label."""
    image, label, properties = _read(task)
    spacing, target = properties["spacing"], task["spacing_zyx_mm"]
    shape = compute_new_shape(image.shape[1:], spacing, target)
    image = image.astype(np.float32)
    before, started = peak_rss_mib(), time.perf_counter()
    resample_data_or_seg_to_shape(image, shape, spacing, target, **IMAGE_ORDER)
    if label is not None:
        resample_data_or_seg_to_shape(label, shape, spacing, target, **LABEL_ORDER)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rss_before_mib": before, "shape": [int(size) for size in shape]}


def train(task: dict) -> dict:
    """nnUNetTrainer's step: PlainConvUNet, Dice + cross-entropy with deep supervision, SGD; fp32, as it is on a CPU."""
    network = _network(task)
    levels = len(task["features"]) - 1
    weights = np.array([1 / 2**level for level in range(levels)])
    weights[-1] = 0
    loss = DeepSupervisionWrapper(
        DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            weight_ce=1,
            weight_dice=1,
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
        weights / weights.sum(),
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    image, label = (torch.from_numpy(array) for array in random_batch(task))
    targets, factor = [], np.ones(3, int)
    for stride in task["strides"][:levels]:
        factor = factor * stride
        targets.append(label[:, None, :: factor[0], :: factor[1], :: factor[2]].float())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        value = loss(network(image), targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        value.item()

    parameters = sum(parameter.numel() for parameter in network.parameters())
    before = peak_rss_mib()
    step()
    started = time.perf_counter()
    for _ in range(task["steps"]):
        step()
    seconds = (time.perf_counter() - started) / task["steps"]
    return {"seconds": seconds, "rss_before_mib": before, "parameters": parameters, "precision": "fp32"}


def training_files(task: dict) -> dict:
    """The cases as nnU-Net trains on them: what its DefaultPreprocessor writes, where its trainer looks for it."""
    base = Path(task["preprocessed"]) / DATASET
    folder = base / IDENTIFIER
    folder.mkdir(parents=True, exist_ok=True)
    plans = PlansManager(_training_plans(task))
    configuration = plans.get_configuration("3d_fullres")
    started = time.perf_counter()
    for case_id, image, label in task["cases"]:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case_id), [image], label, plans, configuration, task["dataset_json"]
        )
    (base / "dataset_fingerprint.json").write_text("{}\n", encoding="utf-8")  # which the trainer copies
    return {"seconds": time.perf_counter() - started}


def train_loop(task: dict) -> dict:
    """nnUNetTrainer's epoch as its run_training runs it, its own loaders included, without the validation."""
    torch.manual_seed(0)
    plans = {**_training_plans(task), "continue_training": False}
    description = json.loads(Path(task["dataset_json"]).read_text(encoding="utf-8"))
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", description, device=torch.device("cpu"))
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    waited, took = [], []
    for _ in range(task["warm_up"] + task["steps"]):
        started = time.perf_counter()
        batch = next(trainer.dataloader_train)
        waited.append(time.perf_counter() - started)
        trainer.train_step(batch)
        took.append(time.perf_counter() - started)
    shape = list(batch["data"].shape)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        loader._finish()
    waited, took = waited[task["warm_up"] :], took[task["warm_up"] :]
    return {
        "seconds": sum(took) / len(took),
        "patches": shape[0],
        "wait_share": sum(waited) / sum(took),
        "shape": shape,
        "precision": "fp32",
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
    }


def _training_plans(task: dict) -> dict:
    plans = {**_plans(task), "dataset_name": DATASET, "plans_name": "plans", "image_reader_writer": "SimpleITKIO"}
    plans["configurations"]["3d_fullres"] |= {"batch_size": task["batch"], "data_identifier": IDENTIFIER}
    return plans


def _read(task: dict) -> tuple[np.ndarray, np.ndarray | None, dict]:
    image, properties = SimpleITKIO().read_images([task["image"]])
    label = SimpleITKIO().read_seg(task["label"])[0] if task["label"] else None
    return image, label, properties


def _values(label: np.ndarray | None) -> list[int]:
    return [] if label is None else [int(value) for value in np.unique(label) if value > 0]


def model(task: dict) -> dict:
    """A model folder as training leaves it, with random weights."""
    folder = Path(task["folder"])
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    plans = {
        **_plans(task),
        "dataset_name": DATASET,
        "plans_name": "plans",
        "image_reader_writer": "SimpleITKIO",
    }
    labels = {"background": 0, **{f"organ {number}": number for number in range(1, task["classes"])}}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    torch.manual_seed(0)
    network = _network(task)
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def _network(task: dict) -> torch.nn.Module:
    return get_network_from_plans(*_architecture(task).values(), 1, task["classes"], deep_supervision=True)


def _architecture(task: dict) -> dict:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": len(task["features"]),
            "features_per_stage": task["features"],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": task["kernels"],
            "strides": task["strides"],
            "n_conv_per_stage": task["encoder_convs"],
            "n_conv_per_stage_decoder": task["decoder_convs"],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _plans(task: dict) -> dict:
    low, high, mean, sd = task["clip_low"], task["clip_high"], task["mean"], task["sd"]
    function = "resample_data_or_seg_to_shape"
    return {
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"percentile_00_5": low, "percentile_99_5": high, "mean": mean, "std": sd}
        },
        "configurations": {
            "3d_fullres": {
                "spacing": task["spacing_zyx_mm"],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": function,
                "resampling_fn_data_kwargs": dict(IMAGE_ORDER),
                "resampling_fn_seg": function,
                "resampling_fn_seg_kwargs": dict(LABEL_ORDER),
                "resampling_fn_probabilities": function,
                "resampling_fn_probabilities_kwargs": dict(IMAGE_ORDER, order=1),
                "patch_size": task.get("patch_zyx"),
                "batch_dice": False,
                "preprocessor_name": "DefaultPreprocessor",
                "architecture": _architecture(task) if "features" in task else {},
            }
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["preprocess", "resample", "train", "training_files", "train_loop", "model"])
    parser.add_argument("task", type=json.loads)
    options = parser.parse_args()
    torch.set_num_threads(options.task.get("threads", 1))
    work = {
        "preprocess": preprocess,
        "resample": resample,
        "train": train,
        "training_files": training_files,
        "train_loop": train_loop,
        "model": model,
    }[options.work]
    packages = ("nnunetv2", "torch", "numpy", "scikit-image", "scipy")
    report(work(options.task), {name: importlib.metadata.version(name) for name in packages})
