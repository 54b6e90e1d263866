"""Makes the single executable: ``python -m smsgw.cli.binary --output dist``.

It holds Python, SQLite and everything the gateway reads, so it runs on a machine that has none of
them, of the same system and processor as the one that made it, with a C library as new as there.
"""

import argparse
import importlib
import tempfile
from pathlib import Path
from typing import Final

import smsgw
from smsgw.cli import output
from smsgw.cli.options import PROGRAM
from smsgw.errors import SmsgwError

# A script inside the package would put our own numbers.py before that of the standard library.
_START: Final = """
from multiprocessing import freeze_support

from smsgw.cli.main import run

# The executable is also what the processes of a measurement start as.
freeze_support()
run()
"""

_LOADED_BY_NAME: Final = ("uvicorn", "phonenumbers")
"""Packages that import parts of themselves by name, where PyInstaller cannot see it."""


class CannotBuild(SmsgwError):
    """The executable cannot be made."""


def build(folder: Path) -> Path:
    """Make the executable.

    Args:
        folder: where to put it.

    Returns:
        Its path.

    Raises:
        CannotBuild: PyInstaller is not installed.
    """
    try:
        pyinstaller = importlib.import_module("PyInstaller.__main__")
    except ImportError as error:
        raise CannotBuild("PyInstaller is missing: pip install '.[binary]'") from error
    with tempfile.TemporaryDirectory() as work:
        start = Path(work) / "start.py"
        start.write_text(_START, encoding="utf-8")
        pyinstaller.run(_arguments(start, folder.absolute()))
    return folder / PROGRAM


def _arguments(start: Path, folder: Path) -> list[str]:
    return [
        "--onefile",
        f"--name={PROGRAM}",
        f"--paths={Path(smsgw.__file__).parents[1]}",
        f"--distpath={folder}",
        f"--workpath={start.parent / 'work'}",
        f"--specpath={start.parent}",
        "--noconfirm",
        "--log-level=WARN",
        # SQL, the API pages, the guides, the licences.
        f"--collect-data={PROGRAM}",
        # Versions, which a measurement names.
        f"--recursive-copy-metadata={PROGRAM}",
        *(f"--collect-submodules={package}" for package in _LOADED_BY_NAME),
        str(start),
    ]


def main() -> None:
    """Make the executable where ``--output`` says."""
    parser = argparse.ArgumentParser(description="Make the single executable.")
    parser.add_argument("--output", type=Path, default=Path("dist"), metavar="DIR")
    try:
        print(build(parser.parse_args().output))
    except CannotBuild as error:
        output.complain(error.detail)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
