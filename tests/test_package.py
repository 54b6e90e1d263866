"""What is installed: everything the gateway reads lies beside the code, also in one file."""

import importlib.metadata
import sys
import sysconfig
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import smsgw
from smsgw.cli import binary

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "smsgw"


def files_of_the_package() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_file_that_is_no_module_is_named_as_data() -> None:
    globs = project()["tool"]["setuptools"]["package-data"]["smsgw"]
    named = {str(path.relative_to(ROOT)) for glob in globs for path in PACKAGE.glob(glob)}
    others = {name for name in files_of_the_package() if not name.endswith(".py")}
    assert others == named


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "api/static/docs.html",
        "api/static/swagger-ui.LICENSE",
        "docs/operations.md",
        "py.typed",
        "store/sql/schema.sql",
    ],
)
def test_what_the_package_cannot_do_without_is_there(name: str) -> None:
    assert f"smsgw/{name}" in files_of_the_package()


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_what_pip_installed_is_what_is_here() -> None:
    site = sysconfig.get_path("purelib")
    found = list(importlib.metadata.distributions(name="smsgw", path=[site]))
    if not found:
        pytest.skip("smsgw is not installed")
    installed = {str(path) for path in found[0].files or () if "__pycache__" not in path.parts}
    if any("__editable__" in name for name in installed):
        pytest.skip("smsgw is installed as editable: its files are those that are here")
    assert {name for name in installed if name.startswith("smsgw/")} == files_of_the_package()
    assert any(name.endswith(".dist-info/licenses/smsgw/LICENSE") for name in installed)


def test_the_version_is_the_same_everywhere() -> None:
    assert project()["project"]["version"] == smsgw.__version__


def test_the_executable_starts_the_command_line_with_all_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[str]]] = []

    def run(arguments: list[str]) -> None:
        calls.append((Path(arguments[-1]).read_text(), arguments))

    maker = types.ModuleType("PyInstaller.__main__")
    maker.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyInstaller", types.ModuleType("PyInstaller"))
    monkeypatch.setitem(sys.modules, "PyInstaller.__main__", maker)
    assert binary.build(tmp_path) == tmp_path / "smsgw"
    ((start, arguments),) = calls
    assert "from smsgw.cli.main import run" in start
    assert start.endswith("freeze_support()\nrun()\n")
    assert {"--onefile", "--collect-data=smsgw", f"--distpath={tmp_path}"} < set(arguments)
    assert not Path(arguments[-1]).exists()


def test_without_pyinstaller_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PyInstaller.__main__", None)
    monkeypatch.setattr(sys, "argv", ["binary"])
    with pytest.raises(SystemExit) as ended:
        binary.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == ("smsgw: PyInstaller is missing: pip install '.[binary]'\n")
