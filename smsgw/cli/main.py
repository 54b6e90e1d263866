"""All commands, and how each of them ends: what it prints last, and its exit code."""

import io
import os
import sys
from collections.abc import Sequence
from multiprocessing import freeze_support
from typing import Annotated, Any, Final

import typer

from smsgw import __version__
from smsgw.cli import (
    backups,
    benches,
    clients,
    messages,
    migrate,
    operations,
    output,
    providers,
    shards,
)
from smsgw.cli.options import PROGRAM, Invocation, placed
from smsgw.errors import SmsgwError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

# Typer shows one usage error but not their base, which lies in another place in each version.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
@placed
def root(
    at: Invocation,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """An SMS gateway in one process: a message and its money move together."""
    if version:
        print(f"smsgw {__version__}")
        raise typer.Exit
    if at.context.invoked_subcommand is None:
        print(at.context.get_help(), file=sys.stderr)
        raise typer.Exit(EXIT_USAGE)


app.command()(operations.serve)
app.add_typer(clients.clients, name="client")
app.add_typer(clients.credit, name="credit")
app.add_typer(messages.messages, name="message")
app.add_typer(providers.providers, name="provider")
app.add_typer(operations.pausing("pause", "Stop"), name="pause")
app.add_typer(operations.pausing("resume", "Go on"), name="resume")
app.add_typer(messages.receipts, name="receipts")
app.command()(clients.report)
app.command()(operations.audit)
app.command()(operations.status)
app.add_typer(shards.shards, name="shards")
app.command()(migrate.migrate)
app.command()(backups.backup)
app.command()(backups.restore)
app.add_typer(operations.config, name="config")
app.add_typer(benches.bench, name="bench")
app.command()(operations.version)


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    try:
        code = app(arguments, prog_name=PROGRAM, standalone_mode=False)
        # A pipe that nobody reads any more is noticed here, not while the interpreter ends.
        sys.stdout.flush()
    except _UsageError as error:
        output.complain(_how_to_call(error))
        return EXIT_USAGE
    except SmsgwError as error:
        output.complain(error.detail)
        return EXIT_FAILED
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is left in the buffer goes nowhere, or the interpreter would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return int(code or 0)


def _how_to_call(error: Any) -> str:
    """What is wrong with a command line, and where it says how it should be."""
    help_for = error.ctx.command_path if error.ctx else PROGRAM
    return f"{error.format_message().rstrip('.')}. Try '{help_for} --help'."


def run() -> None:
    """The console script: run the command of this process and exit."""
    # In the one-file executable, a process that the benchmark spawns begins here, too.
    freeze_support()
    # No text of a message may end a command, whatever the terminal can show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
