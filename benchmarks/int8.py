"""Networks quantized to int8 by NNCF after training: what they gain in time and cost in Dice, against bf16 and fp32.

    .venv/bin/pip install nncf
    .venv/bin/python benchmarks/int8.py -m MODELS --calibrate IMAGE ... -i IMAGES -r LABEL_MAPS -d DATASET --name NAME

FINE and COARSE are calibrated with windows of training images as prediction makes them, then predict test images as the
others do. Time is the processor time of one window of the plan's patch with one thread, the engines taking turns.
Result: results/int8.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import running
import torch

from flaresemi.cli.inputs import find_cases
from flaresemi.compute.device import device_name
from flaresemi.evaluation.overlap import dice_per_organ
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.models import load_models
from flaresemi.io.images import read_label_map
from flaresemi.networks import openvino as programs
from flaresemi.networks.engine import trained_network


def calibration_windows(segmenter: Segmenter, images: list[Path], most: int) -> dict[str, list[np.ndarray]]:
    """Windows that each stage's network sees of these images, spread evenly."""
    seen: dict[str, list[np.ndarray]] = {}

    def recording(name: str, forward):
        def record(windows: torch.Tensor) -> torch.Tensor:
            seen.setdefault(name, []).append(windows.numpy().copy())
            return forward(windows)

        return record

    stages = {"FINE": segmenter._fine} | ({"COARSE": segmenter._coarse} if segmenter._coarse else {})
    before = {name: stage._members for name, stage in stages.items()}
    for name, stage in stages.items():
        stage._members = [(recording(name, forward), axes) for forward, axes in stage._members]
    for image in images:
        segmenter.segment(segmenter.read([image]))
    for name, stage in stages.items():
        stage._members = before[name]
    return {name: windows[:: max(len(windows) // most, 1)][:most] for name, windows in seen.items()}


def quantized(program, windows: list[np.ndarray]):
    import nncf

    return nncf.quantize(program, nncf.Dataset(windows), preset=nncf.QuantizationPreset.MIXED, subset_size=len(windows))


class Compiled:
    """A program that OpenVINO compiled, as an engine's forward."""

    def __init__(self, program, precision: str) -> None:
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.request = programs._core().compile_model(program, "CPU", options).create_infer_request()

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        openvino = programs._imported()
        self.request.set_input_tensor(openvino.Tensor(windows.contiguous().numpy(), shared_memory=True))
        self.request.infer()
        return torch.from_numpy(self.request.get_output_tensor().data.copy())


def milliseconds(forwards: dict[str, Compiled], window: torch.Tensor, turns: int = 7) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in forwards}
    for turn in range(turns + 1):
        for name, forward in forwards.items():
            start = time.process_time()
            forward(window)
            if turn:
                taken[name].append(1000 * (time.process_time() - start))
    return {name: min(each) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--fold", nargs="+")
    parser.add_argument("--calibrate", type=Path, nargs="+", required=True)
    parser.add_argument("-i", "--images", type=Path, required=True)
    parser.add_argument("-r", "--references", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--windows", type=int, default=40, help="for calibration")
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = load_models(options.model, folds=options.fold)
    segmenter = Segmenter.of(models, engine="openvino", precision="fp32")
    windows = calibration_windows(segmenter, options.calibrate, options.windows)
    checkpoints = {"FINE": models.fine[0]} | ({"COARSE": models.coarse[0]} if segmenter._coarse else {})
    forwards: dict[str, dict[str, Compiled]] = {}
    times = {}
    for name, checkpoint in checkpoints.items():
        program = programs._program(trained_network(checkpoint))
        forwards[name] = {"fp32": Compiled(program, "f32"), "bf16": Compiled(program, "bf16")}
        small = quantized(program, windows[name])
        forwards[name] |= {"int8": Compiled(small, "f32"), "int8 and bf16": Compiled(small, "bf16")}
        shape = (1, checkpoint.plan.network.input_channels, *checkpoint.plan.patch_zyx)
        times[name] = milliseconds(
            forwards[name], torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()
        )
        print(name, shape, times[name], flush=True)
    dice: dict[str, list[float]] = {}
    for case in find_cases(options.images, channels=1)[: options.cases]:
        (reference_file,) = options.references.glob(f"{case.id}.*")
        reference = segmenter.labels.to_indices(read_label_map(reference_file).array_zyx)
        image = segmenter.read(case.images)
        for way in forwards["FINE"]:
            segmenter._fine._members = [(forwards["FINE"][way], axes) for _, axes in segmenter._fine._members]
            if segmenter._coarse is not None:
                segmenter._coarse._members = [(forwards["COARSE"][way], [()])]
            found = segmenter.segment(image).indices_zyx
            scores = dice_per_organ(found, reference, segmenter.labels.channels - 1)
            dice.setdefault(way, []).append(float(np.nanmean(scores)))
        print(case.id, {way: round(each[-1], 4) for way, each in dice.items()}, flush=True)
    result = {
        "name": options.name,
        "processor": device_name(torch.device("cpu")),
        "milliseconds_of_a_window": times,
        "dice": dice,
        "mean_dice": {way: statistics.mean(each) for way, each in dice.items()},
        "difference_to_fp32": {
            way: [statistics.mean(d), statistics.stdev(d) / len(d) ** 0.5]
            for way, each in dice.items()
            if (d := [one - other for one, other in zip(each, dice["fp32"], strict=True)])
        },
    }
    print(json.dumps({key: value for key, value in result.items() if key != "dice"}, indent=1))
    (running.RESULTS / f"int8_{options.name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
