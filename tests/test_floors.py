"""A module imports only from floors below; in-function and TYPE_CHECKING imports count."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "smsgw"
FLOORS = (
    {"errors", "clock", "ids", "memory"},
    {"fields", "models", "templates", "presets", "text", "numbers", "logs", "metrics"},
    {"operators"},
    {"settings"},
    {"turn"},
    {"ledger", "tariff", "routing", "parts", "links"},
    {"lifecycle"},
    {"fairness"},
    {"allotter"},
    {"store", "providers"},
    {"admission"},
    {"entrance", "codes", "archive", "accounts"},
    {"worker", "parked", "receive"},
    {"otp", "receipts", "webhooks", "sweeper", "recovery"},
    {"fleet"},
    {"gateway"},
    {"api"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name.split(".")[1]
        for name in found
        if name.startswith("smsgw.") and name != "smsgw.__version__"
    }


def test_a_module_imports_only_from_floors_below() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        home = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if home == "__init__":
            assert not imports_of(path), "smsgw/__init__.py stays empty of our own imports"
            continue
        for target in imports_of(path) - {home}:
            if FLOOR_OF[target] >= FLOOR_OF[home]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong, wrong


def test_no_module_over_600_lines_and_no_function_over_70() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text()
        if (lines := source.count("\n")) > 600:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (length := node.end_lineno - node.lineno + 1) > 70:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}")
    assert not wrong, wrong


def test_the_oldest_of_many_is_not_looked_for() -> None:
    """A dict passes all that was deleted at its front; an OrderedDict does not, and has popitem."""
    ordered = {"providers/http/polls.py", "providers/smpp/provider.py"}
    looking = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if "next(iter(" in path.read_text()
    }
    assert looking <= ordered, looking - ordered
