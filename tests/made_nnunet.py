"""nnU-Net v2 written down once more, slowly and simply: its networks, its way of predicting, and a results folder.

Its packages are no dependency of the tests; where they are, benchmarks/nnunet_models.py compares with nnU-Net itself.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from skimage.transform import resize
from torch import nn


class _Conv(nn.Module):
    """Convolution with a bias, instance norm, leaky ReLU; every layer stands in the state dict twice, as there."""

    def __init__(self, inputs: int, outputs: int, kernel: list[int], stride: list[int], *, bias: bool = True,
                 active: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, [size // 2 for size in kernel], bias=bias)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        layers: list[nn.Module] = [self.conv, self.norm]
        if active:
            layers.append(nn.LeakyReLU())
        self.all_modules = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.all_modules(x)


class _Convs(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        rest = [_Conv(outputs, outputs, kernel, [1, 1, 1]) for _ in range(count - 1)]
        self.convs = nn.Sequential(_Conv(inputs, outputs, kernel, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        self.conv1 = _Conv(inputs, outputs, kernel, stride)
        self.conv2 = _Conv(outputs, outputs, kernel, [1, 1, 1], active=False)
        skip: list[nn.Module] = [] if stride == [1, 1, 1] else [nn.AvgPool3d(stride, stride)]
        if inputs != outputs:
            skip.append(_Conv(inputs, outputs, [1, 1, 1], [1, 1, 1], bias=False, active=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x))


class _Blocks(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        rest = [_Block(outputs, outputs, kernel, [1, 1, 1]) for _ in range(count - 1)]
        self.blocks = nn.Sequential(_Block(inputs, outputs, kernel, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class _Encoder(nn.Module):
    def __init__(self, arguments: dict, inputs: int, *, residual: bool) -> None:
        super().__init__()
        features, kernels = arguments["features_per_stage"], arguments["kernel_sizes"]
        stages: list[nn.Module] = []
        if residual:
            self.stem = _Convs(1, inputs, features[0], kernels[0], [1, 1, 1])
            inputs = features[0]
        for level, outputs in enumerate(features):
            sizes = inputs, outputs, kernels[level], arguments["strides"][level]
            if residual:
                stages.append(_Blocks(arguments["n_blocks_per_stage"][level], *sizes))
            else:
                stages.append(nn.Sequential(_Convs(arguments["n_conv_per_stage"][level], *sizes)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x) if hasattr(self, "stem") else x
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class _Decoder(nn.Module):
    def __init__(self, encoder: _Encoder, arguments: dict, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder  # there, too: its weights stand in the state dict twice
        features, strides = arguments["features_per_stage"], arguments["strides"]
        stages, ups, heads = [], [], []
        for rank in range(len(features) - 1):
            below, level = features[-1 - rank], len(features) - 2 - rank
            ups.append(nn.ConvTranspose3d(below, features[level], strides[level + 1], strides[level + 1], bias=True))
            count, kernel = arguments["n_conv_per_stage_decoder"][rank], arguments["kernel_sizes"][level]
            stages.append(_Convs(count, 2 * features[level], features[level], kernel, [1, 1, 1]))
            heads.append(nn.Conv3d(features[level], outputs, 1, bias=True))
        self.stages, self.transpconvs, self.seg_layers = map(nn.ModuleList, (stages, ups, heads))

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor:
        x = skips[-1]
        for rank, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-2 - rank]), 1))
        return self.seg_layers[-1](x)


class ReferenceNet(nn.Module):
    """PlainConvUNet or ResidualEncoderUNet, by the names of dynamic_network_architectures."""

    def __init__(self, arguments: dict, inputs: int, outputs: int, *, residual: bool) -> None:
        super().__init__()
        self.encoder = _Encoder(arguments, inputs, residual=residual)
        self.decoder = _Decoder(self.encoder, arguments, outputs)
        for parameter in self.parameters():  # biases and norms that matter
            nn.init.normal_(parameter, std=0.3)
        last, head = self.decoder.stages[-1].convs[-1].norm, self.decoder.seg_layers[-1]
        with torch.no_grad():  # so that every label wins somewhere
            last.weight.fill_(1.0), last.bias.zero_(), head.bias.zero_()
            head.weight -= head.weight.mean(dim=1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def write_results(folder: Path, *, residual: bool = False, labels: dict | None = None, folds: tuple[str, ...] = ("0",),
                  change: dict | None = None, name: str = "nnUNetTrainer__nnUNetPlans__3d_fullres",
                  order: list[int] | None = None, **others: object) -> Path:  # fmt: skip
    """A results folder as nnU-Net leaves it, with random weights.

    Args:
        folder: Of the dataset; the model's folder is made in it.
        residual: Which of the two networks.
        labels: Of dataset.json.
        folds: Which.
        change: Of the configuration.
        name: Of the model's folder.
        order: regions_class_order of dataset.json.
        others: Of plans.json.
    """
    labels = labels or {"background": 0, "liver": 1, "spleen": 2}
    model = folder / name
    arguments = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 2, 2],
        "n_conv_per_stage_decoder": [2, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    kind = "residual_unet.ResidualEncoderUNet" if residual else "unet.PlainConvUNet"
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": [3.0, 1.5, 1.6],
        "patch_size": [8, 16, 16],
        "batch_size": 2,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": f"dynamic_network_architectures.architectures.{kind}",
                         "arch_kwargs": arguments},
    } | (change or {})  # fmt: skip
    plans = {
        "dataset_name": folder.name,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"percentile_00_5": -200.0, "percentile_99_5": 300.0, "mean": 60.0, "std": 80.0, "median": 60.0}
        },
        "configurations": {
            "base": configuration,
            "3d_fullres": {"inherits_from": "base"},
            "3d_lowres": {"inherits_from": "base", "spacing": LOW_SPACING, "next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    } | others
    model.mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    description |= {} if order is None else {"regions_class_order": order}
    (model / "dataset.json").write_text(json.dumps(description))
    inputs, outputs = 1 + (len(_values(labels)) if "cascade" in name else 0), _outputs(labels)
    for fold in folds:
        torch.manual_seed(3 + len(fold) + ord(fold[0]))
        network = ReferenceNet(arguments, inputs, outputs, residual=residual)
        (model / f"fold_{fold}").mkdir()
        content = {
            "network_weights": network.state_dict(),
            "optimizer_state": {"state": {0: torch.zeros(3)}},
            "grad_scaler_state": None,
            "logging": {"dice": [[np.float32(0.5), np.float64(0.25)]], "curve": np.arange(3)},
            "_best_ema": np.float32(0.5),
            "current_epoch": 4,
            "init_args": {
                "configuration": name.rpartition("__")[2],
                "fold": 0,
                "device": torch.device("cpu"),
                "plans": plans,
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(content, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model


#: Of the configuration 3d_lowres.
LOW_SPACING = [4.5, 2.5, 3.0]


def _values(labels: dict) -> list[int]:
    """The values of all labels and regions, without background and ignored voxels."""
    kept = [value if isinstance(value, list) else [value] for name, value in labels.items() if name != "ignore"]
    return sorted({value for each in kept for value in each} - {0})


def _has_regions(labels: dict) -> bool:
    return any(isinstance(value, list) for value in labels.values())


def _outputs(labels: dict) -> int:
    """One for each region, or for background and each label."""
    count = len([name for name in labels if name != "ignore"])
    return count - 1 if _has_regions(labels) else count


def reference_labels(model: Path, image: Path, *, residual: bool, folds: tuple[str, ...] = ("0",),
                     previous: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """What nnU-Net predicts, in the order of the file: every step in full, in double precision where it has it.

    Args:
        previous: The label map of the first network of a cascade, in the order of the file.
    """
    plans, description = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
    low = model.name.endswith("3d_lowres")
    configuration = plans["configurations"]["base"] | ({"spacing": LOW_SPACING} if low else {})
    stored = sitk.ReadImage(str(image))
    forward = plans["transpose_forward"]
    data = sitk.GetArrayFromImage(stored).astype(np.float32).transpose(forward)
    spacing = [stored.GetSpacing()[::-1][axis] for axis in forward]
    mask = ndimage.binary_fill_holes(data != 0)
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(mask))
    whole, mask, data = data.shape, mask[box], data[box].copy()
    facts = plans["foreground_intensity_properties_per_channel"]["0"]
    if configuration["normalization_schemes"] == ["CTNormalization"]:
        data = (data.clip(facts["percentile_00_5"], facts["percentile_99_5"]) - facts["mean"]) / facts["std"]
    elif configuration["normalization_schemes"] == ["RescaleTo01Normalization"]:
        data -= data.min()
        data /= max(data.max(), 1e-8)
    elif configuration["normalization_schemes"] == ["NoNormalization"]:
        pass
    elif configuration["use_mask_for_norm"] == [True]:
        data[mask] = (data[mask] - data[mask].mean()) / data[mask].std()
    else:
        data = (data - data.mean()) / data.std()
    target = configuration["spacing"]
    shape = [round(old / new * size) for old, new, size in zip(spacing, target, data.shape, strict=True)]
    inputs = [_resized(data, shape, spacing, target, 3)]
    if previous is not None:
        inputs += _one_hot(previous.transpose(forward)[box], mask, shape, spacing, target, description["labels"])
    logits = _windows(np.stack(inputs), model, plans, description, residual, folds)
    back = np.stack([_resized(each, list(data.shape), target, spacing, 1) for each in logits])
    labels = np.zeros(whole, np.uint8)
    labels[box] = back.argmax(0)
    if _has_regions(description["labels"]):
        labels[box] = 0
        for each, value in zip(back, description["regions_class_order"], strict=True):
            labels[box][1 / (1 + np.exp(-each)) > 0.5] = value
    return labels.transpose(np.argsort(forward))


def _one_hot(labels: np.ndarray, mask: np.ndarray, shape: list[int], old: list[float], new: list[float],
             names: dict) -> list[np.ndarray]:  # fmt: skip
    """Each label's mask on the network's voxels; outside of the patient is a label of its own meanwhile.

    Where several are equally likely, the nearest voxel's is taken, if it is one of them.
    """
    labels = np.where((labels == 0) & ~mask, -1, labels.astype(int))
    there = np.unique(labels)
    scores = np.stack([_resized((labels == value).astype(float), shape, old, new, 1) for value in there])
    nearest = _resized(labels, shape, old, new, 0)
    found = np.where((scores == scores.max(0))[np.searchsorted(there, nearest), *np.indices(shape)], nearest,
                     there[scores.argmax(0)])  # fmt: skip
    return [(found == value).astype(float) for value in _values(names)]


def _resized(volume: np.ndarray, shape: list[int], old: list[float], new: list[float], order: int) -> np.ndarray:
    if list(volume.shape) == shape:
        return volume
    long = next((each for each in (old, new) if max(each) / min(each) > 3), None)
    options = {"order": order, "mode": "edge", "anti_aliasing": False}
    if long is None or long.count(max(long)) > 1:
        return resize(volume.astype(float), shape, **options)
    axis = long.index(max(long))
    flat = [size for number, size in enumerate(shape) if number != axis]
    planes = [resize(plane.astype(float), flat, **options) for plane in np.moveaxis(volume, axis, 0)]
    step = len(planes) / shape[axis]
    nearest = [min(int(np.floor(step * (number + 0.5))), len(planes) - 1) for number in range(shape[axis])]
    return np.moveaxis(np.stack([planes[number] for number in nearest]), 0, axis)


def _windows(data: np.ndarray, model: Path, plans: dict, description: dict, residual: bool,
             folds: tuple[str, ...]) -> np.ndarray:  # fmt: skip
    configuration = plans["configurations"]["base"]
    patch = configuration["patch_size"]
    missing = [max(size - there, 0) for size, there in zip(patch, data.shape[1:], strict=True)]
    ends = [(less // 2, less - less // 2) for less in missing]
    padded = np.pad(data, [(0, 0), *ends])
    starts = []
    for size, window in zip(padded.shape[1:], patch, strict=True):
        count = int(np.ceil((size - window) / (window * 0.5))) + 1
        starts.append([round((size - window) / max(count - 1, 1) * number) for number in range(count)])
    weight = np.zeros(patch)
    weight[tuple(size // 2 for size in patch)] = 1
    weight = ndimage.gaussian_filter(weight, [size / 8 for size in patch], mode="constant")
    weight = torch.from_numpy(weight / weight.max())
    outputs = _outputs(description["labels"])
    total = torch.zeros(outputs, *padded.shape[1:], dtype=torch.float64)
    counted = torch.zeros(padded.shape[1:])
    for fold in folds:
        network = ReferenceNet(configuration["architecture"]["arch_kwargs"], len(data), outputs, residual=residual)
        content = torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
        network.load_state_dict(content["network_weights"])
        network.eval()
        for corner in itertools.product(*starts):
            place = tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))
            window = torch.from_numpy(padded[(slice(None), *place)].astype(np.float32))[None]
            for axes in (each for count in range(4) for each in itertools.combinations((2, 3, 4), count)):
                with torch.no_grad():
                    total[(slice(None), *place)] += network(window.flip(axes)).flip(axes)[0] * weight / 8 / len(folds)
            if fold == folds[0]:
                counted[place] += weight
    inside = tuple(slice(low, low + size) for (low, _), size in zip(ends, data.shape[1:], strict=True))
    return (total / counted).numpy()[(slice(None), *inside)]
