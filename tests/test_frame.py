"""Rules of the house that no linter knows: sizes, imports, documentation, and the inventories."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from cutaway.study import paper_table, studies

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cutaway"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PACKAGES = sorted(".".join(("cutaway", *init.parent.relative_to(SOURCE).parts)) for init in SOURCE.rglob("__init__.py"))
TOPICS = [
    *("reasoning", "circuits", "features", "probes", "steering", "editing", "finetuning"),
    *("organisms", "evals", "redteam", "vision", "agents", "forecasting"),
]

MAX_FILE, MAX_FUNCTION, MAX_METHODS = 600, 80, 15
OVER_SIZE: dict[str, int] = {}
"""``path`` or ``path:function`` to the lines it may have. May only shrink: delete what fits again."""

UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.serialization.load", "joblib.load"}
UNSAFE_CALLS |= {"pickle.loads", "pandas.read_pickle"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def walk(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def sizes() -> dict[str, int]:
    """Lines of every file and function of ours."""
    found = {}
    for path in FILES:
        found[relative(path)] = len(path.read_text(encoding="utf-8").splitlines())
        for node in walk(path):
            if isinstance(node, Function):
                key = f"{relative(path)}:{node.name}"
                found[key] = max(found.get(key, 0), (node.end_lineno or 0) - node.lineno + 1)
    return found


def test_files_and_functions_stay_readable() -> None:
    limit = {name: MAX_FUNCTION if ":" in name else MAX_FILE for name in sizes()}
    over = {name: n for name, n in sizes().items() if n > max(limit[name], OVER_SIZE.get(name, 0))}
    assert over == {}, "split these"


def test_the_over_size_list_only_shrinks() -> None:
    now = sizes()
    fits = [n for n in OVER_SIZE if now.get(n, 0) <= (MAX_FUNCTION if ":" in n else MAX_FILE)]
    assert fits == [], "these fit again; delete them from OVER_SIZE"


def test_no_class_has_more_than_15_public_methods() -> None:
    over = {}
    for path in FILES:
        for node in walk(path):
            if isinstance(node, ast.ClassDef):
                methods = [m for m in node.body if isinstance(m, Function) and not m.name.startswith("_")]
                if len(methods) > MAX_METHODS:
                    over[f"{relative(path)}:{node.name}"] = len(methods)
    assert over == {}


def test_importing_cutaway_is_light() -> None:
    program = (
        "import sys, cutaway;"
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'sqlalchemy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in walk(path):
        if isinstance(node, ast.Call):
            assert dotted(node.func) not in UNSAFE_CALLS or only_weights(node), f"line {node.lineno}"
            assert not any(k.arg == "allow_pickle" for k in node.keywords), f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            assert UNSAFE_MODULES.isdisjoint(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNSAFE_MODULES


def only_weights(call: ast.Call) -> bool:
    """Another tool's file of tensors, read by the loader that refuses everything else."""
    given = {k.arg: k.value for k in call.keywords}
    value = given.get("weights_only")
    return dotted(call.func) == "torch.load" and isinstance(value, ast.Constant) and value.value is True


def catches_everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_broad_except_keeps_the_error(path: Path) -> None:
    for node in walk(path):
        if isinstance(node, ast.ExceptHandler) and catches_everything(node):
            last = node.body[-1]
            cleans_up = isinstance(last, ast.Raise) and last.exc is None
            assert cleans_up, f"line {node.lineno}: name the errors, or end with a bare raise"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented(package: str) -> None:
    module = importlib.import_module(package)
    bare = []
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            text = thing.__doc__ or ""
            # A dataclass without a docstring is given its own signature for one.
            if not text.strip() or text.startswith(f"{name}("):
                bare.append(name)
    assert bare == []
    assert module.__doc__, "say in one line what is in here"


def test_papers_of_a_room_do_not_import_each_other() -> None:
    graph = grimp.build_graph("cutaway", cache_dir=None)
    for topic in TOPICS:
        folder = SOURCE / topic
        papers = [f"cutaway.{topic}.{wiring.parent.name}" for wiring in sorted(folder.glob("*/study.py"))]
        for paper in papers:
            for other in papers:
                if paper != other:
                    chains = graph.find_shortest_chains(paper, other)
                    assert chains == set(), f"{paper} imports {other}; move what both want to the room"


def skip_reasons(path: Path) -> Iterator[str]:
    """The reason of every skip and expected failure in a test file; its fixed part where it is formatted."""
    for node in walk(path):
        if not isinstance(node, ast.Call):
            continue
        kind = dotted(node.func).rpartition("pytest.")[2]
        if kind not in ("skip", "importorskip", "xfail", "mark.skip", "mark.skipif", "mark.xfail"):
            continue
        reasons = [k.value for k in node.keywords if k.arg == "reason"]
        if not reasons and kind in ("skip", "xfail"):
            reasons = node.args[:1]
        parts = [part for reason in reasons for part in ast.walk(reason) if isinstance(part, ast.Constant)]
        fixed = max((str(part.value) for part in parts), key=len, default="")
        assert fixed.strip(), f"{relative(path)}:{node.lineno} skips without a reason written there"
        yield fixed.strip()


def test_every_skip_is_in_the_inventory() -> None:
    inventory = (ROOT / "tests" / "SKIPS.md").read_text(encoding="utf-8")
    reasons = {reason for path in TESTS if path != Path(__file__) for reason in skip_reasons(path)}
    assert {reason for reason in reasons if reason not in inventory} == set()
    listed = set(re.findall(r"^\| `(.+?)` \|", inventory, flags=re.MULTILINE))
    assert listed - reasons == set(), "these skips are gone; delete them from tests/SKIPS.md"


def test_the_readme_lists_the_systems_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper_table(studies().values()).strip() in readme


def test_the_constraints_pin_every_dependency() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins if "==" in line}
    assert all("+" not in line for line in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=! ]", want)[0]).lower() for want in wanted}
    assert names - pinned == set()
