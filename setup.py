"""Metadata, dependencies, console scripts. Tool settings are in pyproject.toml, exact versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "flaresemi" / "__init__.py").read_text(encoding="utf-8"))
if VERSION is None:
    raise RuntimeError("flaresemi/__init__.py names no __version__")

#: Lower bounds are the oldest versions that pass `make test-lowest`; whatever is imported is named.
DEPENDENCIES = [
    "torch>=2.6",
    "numpy>=2.0",
    "scipy>=1.15",
    "SimpleITK>=2.4",
    "pydicom>=3.0.1",  # 3.0.0 downloads pictures when its examples are looked at
    "nibabel>=5.3",
    "acvl-utils>=0.2.3",
    "batchgenerators>=0.25.1",
    "connected-components-3d>=3.20",
    "scikit-image>=0.24",
    "matplotlib>=3.9",
    "tensorboard>=2.18",
    "psutil>=6.0",
    "threadpoolctl>=3.5",
    "Jinja2>=3.1",
    "tqdm>=4.66",
    "packaging>=24.2",  # setuptools, which torch.utils.benchmark imports, needs its licenses
]

DEVELOPMENT = [
    "hypothesis>=6.100",
    "mypy>=1.13",
    "playwright>=1.49",  # drives the Chromium of the system in the tests of the review page
    "pytest>=8.3",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "setuptools>=77.0.1",  # builds the packages of examples, which a test installs
    "surface-distance>=0.1",  # the reference implementation that ours is compared with
]

#: Computes faster than torch on most CPUs; see benchmarks/results/hardware_limit.md.
OPENVINO = ["openvino>=2026.2"]  # earlier ones cut files off on a full disk, without a word

#: Writes networks as ONNX files; the tests run those.
ONNX, ONNX_RUNTIME = ["onnx>=1.17"], ["onnxruntime>=1.20"]

#: Writes DICOM segmentations.
DICOM = ["highdicom>=0.28"]  # earlier ones know no character set but that of the images

#: Serves predictions, and the review page.
SERVE = ["starlette>=0.46", "uvicorn>=0.34"]

#: Keep the numbers of a training.
MLFLOW, WANDB = ["mlflow>=2.20"], ["wandb>=0.19"]

DOCUMENTATION = ["sphinx>=8.0", "myst-parser>=4.0", "furo>=2024.8.6"]

COMMANDS = (
    "plan_and_preprocess",
    "train",
    "find_best",
    "predict",
    "evaluate",
    "export",
    "semi_round",
    "review",
    "serve",
    "demo",
    "doctor",
)

setup(
    name="flaresemi",
    version=VERSION[1],
    description="From a few labeled scans and many unlabeled ones to a fast multi-organ segmenter",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["flaresemi", "flaresemi.*"]),
    install_requires=DEPENDENCIES,
    extras_require={
        "dev": [*DEVELOPMENT, *OPENVINO, *ONNX, *ONNX_RUNTIME, *DICOM, *SERVE, *DOCUMENTATION],
        "openvino": OPENVINO,
        "onnx": ONNX,
        "dicom": DICOM,
        "serve": SERVE,
        "mlflow": MLFLOW,
        "wandb": WANDB,
        "review": SERVE,
        "docs": DOCUMENTATION,
    },
    entry_points={"console_scripts": [f"flaresemi_{name} = flaresemi.cli.{name}:main" for name in COMMANDS]},
    classifiers=[
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    package_data={
        "flaresemi": [
            "py.typed",
            "reporting/page.css",
            "reporting/*.html",
            "rounds/report/*.html",
            "review/pages/*",
            "comparing/*.html",
        ]
    },
)
