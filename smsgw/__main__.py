"""``python -m smsgw`` is the same as ``smsgw``."""

from smsgw.cli.main import run

if __name__ == "__main__":
    run()
