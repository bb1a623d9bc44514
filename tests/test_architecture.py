"""The house rules that a machine can check: who may import whom, and what stands only in one place."""

import ast
import collections
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "flaresemi"

#: A module imports its own package or a lower row. Modules at the root are row 0.
ROWS = {
    "io": 1,
    "compute": 1,
    "web": 1,
    "preprocessing": 2,
    "networks": 2,
    "evaluation": 2,
    "phantom": 2,
    "nnunet": 3,
    "planning": 3,
    "reporting": 3,
    "inference": 4,
    "training": 5,
    "pseudolabels": 5,
    "rounds": 6,
    "comparing": 6,
    "serving": 6,
    "review": 7,
    "cli": 8,
}

#: Where a third-party package may be imported: a file or a folder of the package. Others may be imported from row 1 up.
ONLY_IN = {
    "SimpleITK": ("io/images.py", "io/image_file.py", "io/dicom_voxels.py"),
    "pydicom": ("io/dicom", "io/rtstruct.py"),
    "highdicom": "io/dicom_seg.py",
    "starlette": ("serving/", "review/server.py"),
    "uvicorn": "web/",
    "mlflow": "training/tracking.py",
    "wandb": "training/tracking.py",
    "nibabel": "io/",
    "acvl_utils": "inference/",
    "batchgenerators": "training/",
    "matplotlib": "reporting/",
    "jinja2": "reporting/page.py",
    "tensorboard": "training/",
    "openvino": "networks/openvino.py",
    "cc3d": ("preprocessing/", "inference/", "phantom/", "evaluation/", "pseudolabels/"),
    "argparse": "cli/",
}

#: The import name of a distribution, where the two differ.
IMPORT_NAMES = {
    "Jinja2": "jinja2",
    "acvl-utils": "acvl_utils",
    "connected-components-3d": "cc3d",
    "scikit-image": "skimage",
}

#: Packages of an extra, imported inside functions where they are there.
OPTIONAL = {"openvino", "highdicom", "starlette", "uvicorn", "mlflow", "wandb"}

#: Needed by a package that we import, without being imported by us.
INDIRECT = {"tensorboard"}  # behind torch.utils.tensorboard

#: Who may look at environment variables: what a launcher (torchrun, SLURM, OpenMP) says, and where temporary files go.
ENVIRONMENT = (
    "compute/distributed.py",
    "compute/sharding.py",
    "compute/checkup.py",
    "files.py",
    "cli/common.py",
    "cli/launching.py",
    "cli/side_by_side.py",
)

#: What not every system has, and by what a system is told from another: portability.py stands in for it.
NOT_EVERYWHERE = re.compile(
    r"(fcntl|grp|msvcrt|posix|pwd|resource|termios|winreg)(\.|$)|sys\.platform|os\.(name$|O_(CLO|DIR|NO|SYNC|TMP)|fork|gete?[ug]id"
    r"|getloadavg|getpgid|kill|memfd|mk(fifo|nod)|nice|posix_|p(read|write)|register|sched_|set(sid|uid)|statvfs|sysconf|uname)"
    r"|signal\.(SIG(?!ABRT|FPE|ILL|INT|SEGV|TERM|_DFL|_IGN|nals)|alarm|pause|pthread_|setitimer|sig(?!nal))"
)

#: What takes time to import, and a prediction does not need to begin.
NOT_IN_A_PREDICTION = (
    "batchgenerators", "flaresemi.phantom", "flaresemi.training", "highdicom", "jinja2", "matplotlib", "nibabel",
    "nncf", "onnxruntime", "openvino", "pandas", "pydicom", "scipy.interpolate", "skimage", "sklearn", "tensorboard",
)  # fmt: skip

#: Reasons to think, not numbers to meet: what is longer and one thing all the same is in `LONGER`, with why.
LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 60
LONGER = {
    "training/trainer.py": "the loop, its hooks and the state that it goes on from",
    "io/nifti.py": "one format, from its header to label maps in its words",
    "cli/prediction_options.py:prediction_parser": "a table of options is long without being deep",
    "cli/evaluate.py:_parser": "a table of options, too",
    "cli/training_options.py:_add_training_options": "a table of options, too",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and where."""

    module: str
    line: int


@dataclasses.dataclass(frozen=True)
class Source:
    """A module of the package, parsed."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def package(self) -> str:
        """Folder below flaresemi; empty for a module at the root."""
        parts = self.path.relative_to(PACKAGE).parts
        return parts[0] if len(parts) > 1 else ""

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    def imports(self) -> Iterator[Import]:
        """Every import, those inside functions too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                yield from _from_imports(node)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_without":
                yield Import(ast.literal_eval(node.args[0]), node.lineno)


def _from_imports(node: ast.ImportFrom) -> Iterator[Import]:
    if node.level or node.module is None:
        raise AssertionError(f"relative import in line {node.lineno}: say 'from flaresemi...'")
    if node.module == "flaresemi":  # `from flaresemi import flare22` imports a module
        for alias in node.names:
            yield Import(f"flaresemi.{alias.name}", node.lineno)
    else:
        yield Import(node.module, node.lineno)


def _package_of(module: str) -> str:
    """The folder below flaresemi that a module `flaresemi.x.y` stands in; empty for the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


SOURCES = [Source(path) for path in sorted(PACKAGE.rglob("*.py"))]
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def test_every_package_has_its_row() -> None:
    packages = {source.package for source in SOURCES} - {""}
    assert packages <= ROWS.keys(), "give the new package its row"


@each_source
def test_imports_only_go_down(source: Source) -> None:
    row = ROWS.get(source.package, 0)
    wrong = [
        f"{source.name}:{found.line} imports {found.module}"
        for found in source.imports()
        if found.module.split(".")[0] == "flaresemi"
        and (package := _package_of(found.module)) != source.package
        and (package and ROWS[package] >= row)
    ]
    assert not wrong, f"row {row} may import lower rows only: {wrong}"


@each_source
def test_row_zero_needs_only_numpy_and_psutil(source: Source) -> None:
    if source.package:
        return
    allowed = sys.stdlib_module_names | {"numpy", "psutil", "flaresemi"}
    wrong = [f"{source.name}:{each.line} {each.module}" for each in source.imports() if _top(each) not in allowed]
    assert not wrong


@each_source
def test_a_library_with_a_home_is_imported_only_there(source: Source) -> None:
    wrong = []
    for found in source.imports():
        module = "tensorboard" if found.module.startswith("torch.utils.tensorboard") else _top(found)
        homes = ONLY_IN.get(module)
        if homes is None:
            continue
        if not source.name.startswith(homes):
            wrong.append(f"{source.name}:{found.line} imports {found.module}, whose place is {homes}")
    assert not wrong


@each_source
def test_environment_variables_are_looked_at_only_where_launchers_speak(source: Source) -> None:
    if source.name in ENVIRONMENT:
        return
    names = ("os.environ", "os.getenv", "os.putenv")
    wrong = [
        f"{source.name}:{node.lineno}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in names
    ]
    assert not wrong, f"a setting is an option or a field of a config: {wrong}"


@each_source
def test_what_not_every_system_has_stands_in_one_place(source: Source) -> None:
    if source.name == "portability.py":
        return
    used = [(each.module, each.line) for each in source.imports()]
    used += [(ast.unparse(node), node.lineno) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
    wrong = [f"{source.name}:{line} {name}" for name, line in used if NOT_EVERYWHERE.match(name)]
    assert wrong == []


@each_source
def test_print_and_handlers_stand_in_cli_only(source: Source) -> None:
    if source.package == "cli":
        return
    wrong = [
        f"{source.name}:{node.lineno} calls {name}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and (name := ast.unparse(node.func))
        in ("print", "sys.exit", "exit", "logging.basicConfig", "logger.addHandler")
    ]
    assert not wrong


@each_source
def test_no_assert_and_no_broad_except(source: Source) -> None:
    wrong = [f"{source.name}:{node.lineno} assert" for node in ast.walk(source.tree) if isinstance(node, ast.Assert)]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _ends_with_raise(node):
            wrong.append(f"{source.name}:{node.lineno} catches everything")
    assert not wrong


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def _ends_with_raise(handler: ast.ExceptHandler) -> bool:
    """Cleaning up and passing the same exception on is fine."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@each_source
def test_one_rule_tells_a_lack_of_gpu_memory(source: Source) -> None:
    """torch has an error for it, but cuDNN and the driver do not raise that: `lacks_gpu_memory`."""
    handlers = [node for node in ast.walk(source.tree) if isinstance(node, ast.ExceptHandler) and node.type is not None]
    wrong = [f"{source.name}:{node.lineno}" for node in handlers if "OutOfMemoryError" in ast.unparse(node.type)]
    assert not wrong


@each_source
def test_files_are_read_as_files(source: Source) -> None:
    """Whatever has the name of a file of ours may be a pipe: it would wait for ever, or be read for ever."""
    openers = ("open_regular", "open_no_link")
    wrong = []
    for node in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
        name = ast.unparse(node.func)
        if name.endswith((".read_text", ".read_bytes")) and "resources" not in name:
            wrong.append(f"{source.name}:{node.lineno} {name}: use files.read_text")
        if name != "open" or ast.unparse(node.args[0]).startswith(("'/proc/", "os.devnull")):
            continue
        reads = len(node.args) < 2 or "w" not in ast.unparse(node.args[1])
        if reads and not any(f"opener={opener}" in ast.unparse(node) for opener in openers):
            wrong.append(f"{source.name}:{node.lineno} {ast.unparse(node)}: give it an opener of files.py")
    assert not [line for line in wrong if not line.startswith(("files.py", "machine.py"))]


@each_source
def test_a_module_speaks_through_its_own_logger(source: Source) -> None:
    wrong = [
        f"{source.name}:{node.lineno} {ast.unparse(node)}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "logging.getLogger"
        and source.package != "cli"
        and ast.unparse(node) != "logging.getLogger(__name__)"
    ]
    assert not wrong


def test_what_is_long_is_one_thing() -> None:
    """Modules and functions above the limits are those of `LONGER`, and what has become short again has left it."""
    long = {name for source in SOURCES for name in _long(source)}
    assert long <= LONGER.keys(), f"two things in one? If not, LONGER takes it: {sorted(long - LONGER.keys())}"
    assert long == LONGER.keys(), f"no longer long: {LONGER.keys() - long}"


def _long(source: Source) -> Iterator[str]:
    if len(source.path.read_text(encoding="utf-8").splitlines()) > LINES_OF_A_MODULE:
        yield source.name
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef) and _code_lines(node) > LINES_OF_A_FUNCTION:
            yield f"{source.name}:{node.name}"


def _code_lines(function: ast.FunctionDef) -> int:
    """Lines of the body, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_a_class_of_the_package_has_a_name_of_its_own() -> None:
    places = collections.defaultdict(list)
    for source in SOURCES:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(source.name)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_the_page_on_the_layout_names_every_module() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set()
    for line in (line for line in page.splitlines() if line.startswith("| `")):
        package = ""
        for word in re.findall(r"`([a-z_0-9/]+\.py)`", line):  # a folder holds for its line
            package = word.rpartition("/")[0] or package
            named.add(f"{package}/{word.rpartition('/')[2]}".lstrip("/"))
    present = {source.name for source in SOURCES if source.path.name != "__init__.py"}
    assert named == present, f"not on the page: {present - named}; no longer there: {named - present}"


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    block = setup[setup.index("DEPENDENCIES = [") : setup.index("DEVELOPMENT = [")]
    declared = {IMPORT_NAMES.get(name, name) for name in re.findall(r'"([A-Za-z0-9_.-]+)>=', block)} | OPTIONAL
    used = {_top(found) for source in SOURCES for found in source.imports()} - sys.stdlib_module_names - {"flaresemi"}
    assert used <= declared, f"imported, but not in setup.py: {used - declared}"
    assert declared <= used | INDIRECT, f"in setup.py, but never imported: {declared - used - INDIRECT}"


def test_constraints_pin_every_declared_dependency() -> None:
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    pinned = {
        _normal(line.split("==")[0])
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    assert {_normal(name) for name in re.findall(r'"([A-Za-z0-9_.-]+)>=', setup)} - {"3.11"} <= pinned


def test_results_that_are_cited_are_there() -> None:
    texts = [*REPOSITORY.glob("*.*"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("benchmarks/*.*")]
    texts += [source.path for source in SOURCES]
    cited = {
        (path.relative_to(REPOSITORY).as_posix(), name)
        for path in texts
        if path.suffix in (".py", ".md", ".toml", ".txt")
        for name in re.findall(r"\bresults/(\w+\.(?:md|json|jsonl))\b", path.read_text(encoding="utf-8"))
    }
    missing = {each for each in cited if not (REPOSITORY / "benchmarks" / "results" / each[1]).is_file()}
    assert cited and not missing


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("flaresemi", ("numpy", "torch", "SimpleITK", "scipy", "matplotlib", "logging")),
        ("flaresemi.plans", ("torch", "SimpleITK", "scipy", "matplotlib")),
        ("flaresemi.dataset", ("torch", "SimpleITK", "scipy", "matplotlib")),
        ("flaresemi.workspace", ("torch", "SimpleITK", "scipy", "matplotlib")),
        ("flaresemi.inference", ("torch", "SimpleITK", "scipy")),
        ("flaresemi.io.images", ("pydicom", "nibabel")),
        ("flaresemi.inference.api", ("flaresemi.training", "batchgenerators", "matplotlib", "tensorboard", "pandas")),
        ("flaresemi.cli.predict", ("torch", "scipy", "nibabel", "pydicom", "openvino")),
        ("flaresemi.cli.predicting", NOT_IN_A_PREDICTION),
        ("flaresemi.cli.common", ("torch", "SimpleITK", "scipy", "matplotlib")),
    ],
)
def test_importing_costs_no_more_than_it_must(module: str, absent: tuple[str, ...]) -> None:
    loaded = _loaded_modules(module)
    assert not loaded & set(absent)


@pytest.mark.parametrize("module", ["flaresemi", *(f"flaresemi.{name}" for name in ROWS if (PACKAGE / name).is_dir())])
def test_importing_prints_nothing_and_warns_of_nothing(module: str) -> None:
    swig = "ignore:builtin type"  # of an older SimpleITK (2.5.0), which dies where it is an error
    command = [sys.executable, "-W", "error", "-W", swig, "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@each_source
def test_every_command_runs_with_python_m_too(source: Source) -> None:
    names = {node.name for node in source.tree.body if isinstance(node, ast.FunctionDef)}
    if source.package == "cli" and "main" in names:
        assert 'if __name__ == "__main__":\n    sys.exit(main())\n' in source.path.read_text(encoding="utf-8")


def _loaded_modules(module: str) -> set[str]:
    program = f"import json, sys; import {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", cwd=REPOSITORY, check=True
    )
    return set(json.loads(done.stdout))


def _top(found: Import) -> str:
    return found.module.split(".")[0]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
