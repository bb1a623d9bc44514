"""Nothing that is read is ever run: no pickles, no eval, no shell."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "flaresemi"

#: Modules that run what they read, or pass it to a shell. Of pickle, only the name of its error is used.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "runpy", "code", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "torch.jit.load"}


def problems(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [
        f"imports {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.split(".")[0] in MODULES - {"pickle"}
        or (name == "pickle" and (isinstance(node, ast.ImportFrom) or not _only_its_error(tree)))
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        wrong = (
            name in CALLS
            or options.get("shell", "False") != "False"
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name in ("np.load", "np.memmap", "numpy.load") and options.get("allow_pickle") != "False")
            or (name.endswith("open_memmap") and options.get("mode") != "'r'")
        )
        if wrong:
            found.append(f"line {node.lineno} calls {ast.unparse(node)}")
    return found


def _only_its_error(tree: ast.Module) -> bool:
    used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_pickle(node.value)]
    return set(used) <= {"UnpicklingError"}


def _is_pickle(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "pickle"


def test_no_module_runs_what_it_reads() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): wrong
        for path in sorted(PACKAGE.rglob("*.py"))
        if (wrong := problems(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "import yaml",
        "from pickle import loads",
        "import pickle\npickle.loads(data)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "exec(text)",
    ],
)
def test_such_lines_are_seen(line: str) -> None:
    assert problems(line)
