"""nnU-Net's half of nnunet_models.py: plans, trains and predicts with nnU-Net's own commands. Needs no flaresemi.

The folders nnUNet_raw, nnUNet_preprocessed and nnUNet_results are environment variables, as nnU-Net wants them.
"""

import argparse
import importlib.metadata
import json
import shutil
import time
from pathlib import Path

import torch
from nnunetv2 import paths
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from measuring import peak_rss_mib, report

PLANNERS = {"plain": "ExperimentPlanner", "residual": "nnUNetPlannerResEncM"}
PLANS = {"plain": "nnUNetPlans", "residual": "nnUNetResEncUNetMPlans"}


def make_plans(task: dict) -> dict:
    """A raw dataset of some cases, planned and preprocessed; the batch made small, so that a CPU trains it."""
    name, source, width = task["name"], Path(task["source"]), task["width"]
    raw = Path(paths.nnUNet_raw) / name
    everyone = sorted(path.name.removesuffix("_0000.nii.gz") for path in (source / "imagesTr").glob("*_0000.nii.gz"))
    cases = task.get("names") or everyone[: task["cases"]]
    for case in cases:
        for kind, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kind / f"{case}{ending}.nii.gz", raw / kind)
    description = {"file_ending": ".nii.gz"} | json.loads((source / "dataset.json").read_text())
    description |= {"numTraining": len(cases)} | task.get("description", {})
    (raw / "dataset.json").write_text(json.dumps(description))
    number = int(name[7:10])
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    kinds = [kind for kind in ("plain", "residual") if kind in task["kinds"]]
    for kind in kinds:
        plan_experiments([number], PLANNERS[kind], preprocess_class_name="DefaultPreprocessor")
        path = Path(paths.nnUNet_preprocessed) / name / f"{PLANS[kind]}.json"
        plans = json.loads(path.read_text())
        full = plans["configurations"]["3d_fullres"]
        full["batch_size"] = 2
        full["patch_size"] = [min(*sizes) for sizes in zip(full["patch_size"], task["patch"], strict=True)]
        arguments = full["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [min(width << level, 8 * width) for level in range(arguments["n_stages"])]
        if task.get("lowres"):
            spacing = [2 * size for size in full["spacing"]]
            shape = [size // 2 for size in full["median_image_size_in_voxels"]]
            patch = [max(size // 2, min(size, 32)) for size in full["patch_size"]]
            low = full | {"spacing": spacing, "median_image_size_in_voxels": shape, "patch_size": patch}
            low["next_stage"] = "3d_cascade_fullres"
            plans["configurations"]["3d_lowres"] = low | {"data_identifier": f"{PLANS[kind]}_3d_lowres"}
            cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
            plans["configurations"]["3d_cascade_fullres"] = cascade
        path.write_text(json.dumps(plans))
        configurations = ["3d_fullres", "3d_lowres"] if task.get("lowres") else ["3d_fullres"]
        preprocess([number], PLANS[kind], configurations, [1] * len(configurations))
    return {"cases": cases}


class ShortTrainer(nnUNetTrainer):
    """A few epochs of a few steps with Adam, which needs fewer of them; the network in bf16, for speed."""

    def configure_optimizers(self) -> tuple:
        optimizer = torch.optim.AdamW(self.network.parameters(), 2e-3)
        return optimizer, PolyLRScheduler(optimizer, 2e-3, self.num_epochs)

    def initialize(self) -> None:
        super().initialize()
        forward = self.network.forward

        def in_half(image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                found = forward(image)
            return [each.float() for each in found] if isinstance(found, (list, tuple)) else found.float()

        self.network.forward = in_half

    def train_for(self, seconds: float) -> int:
        """Steps until so much processor time has passed, the learning rate falling with it; returns their number."""
        self.on_train_start()
        steps, started = 0, time.process_time()
        while (passed := (time.process_time() - started) / seconds) < 1:
            self.optimizer.param_groups[0]["lr"] = 2e-3 * (1 - passed) ** 0.9
            self.train_step(next(self.dataloader_train))
            steps += 1
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_final.pth"))
        return steps


def train(task: dict) -> dict:
    """A training of one fold: of so many steps, which goes on where it was stopped, or of so much processor time."""
    torch.manual_seed(task.get("seed", 0))
    base = Path(paths.nnUNet_preprocessed) / task["name"]
    plans = json.loads((base / f"{PLANS[task['kind']]}.json").read_text()) | {"continue_training": False}
    description = json.loads((base / "dataset.json").read_text())
    ShortTrainer.__name__ = "nnUNetTrainer"  # who predicts looks for the class by its name
    trainer = ShortTrainer(plans, task["configuration"], task["fold"], description, device=torch.device("cpu"))
    if "cpu_seconds" in task:
        return {"steps": trainer.train_for(task["cpu_seconds"])}
    epochs = max(4, task["steps"] // 50)
    trainer.num_epochs, trainer.num_val_iterations_per_epoch, trainer.save_every = epochs, 1, 1
    trainer.num_iterations_per_epoch = task["steps"] // epochs
    trainer.oversample_foreground_percent = task["foreground"]
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    if latest.exists():
        trainer.load_checkpoint(str(latest))
    started = time.perf_counter()
    trainer.run_training()
    if task["configuration"] == "3d_lowres":  # it labels the cases from which the second network of a cascade learns
        trainer.inference_allowed_mirroring_axes = None  # in an eighth of the time
        trainer.perform_actual_validation()
    return {"seconds": time.perf_counter() - started, "folder": trainer.output_folder_base}


def predict(task: dict) -> dict:
    """nnUNetPredictor as nnUNetv2_predict uses it, one case after the other in one process.

    A cascade's first network writes its label maps into a folder, which the second one is given, as with
    `-prev_stage_predictions`. With `single_sums`, nnU-Net sums its windows in single precision, which shows what its
    half precision does.
    """
    if task.get("single_sums"):
        torch.half = torch.float32
    before, started = peak_rss_mib(), time.perf_counter()
    images = [[str(path)] for path in task["images"]]
    earlier = None
    if task.get("previous"):
        earlier = Path(task["outputs"][0]).parent / "previous"
        earlier.mkdir(exist_ok=True)
        names = [str(earlier / Path(output).name) for output in task["outputs"]]
        _predictor(task, task["previous"]).predict_from_files_sequential(images, names)
    _predictor(task, task["model"]).predict_from_files_sequential(
        images, task["outputs"], folder_with_segs_from_prev_stage=None if earlier is None else str(earlier)
    )
    return {"seconds": time.perf_counter() - started, "rss_before_mib": before}


def _predictor(task: dict, model: str) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=task["mirroring"], allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, tuple(task["folds"]))
    return predictor


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["make_plans", "train", "predict"])
    parser.add_argument("task", type=json.loads)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = {"make_plans": make_plans, "train": train, "predict": predict}[options.work]
    packages = ("nnunetv2", "torch", "numpy", "scikit-image", "scipy")
    report(work(options.task), {name: importlib.metadata.version(name) for name in packages})
