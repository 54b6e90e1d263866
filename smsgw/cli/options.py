"""What every command takes: --config, --data and --json, before or after the command's name."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec
from uuid import UUID

import typer

from smsgw.cli import output
from smsgw.cli.call import Door, open_door

if TYPE_CHECKING:
    from smsgw.settings import Settings

PROGRAM: Final = "smsgw"
CENTS_MAX: Final = 10**15

Client = Annotated[UUID, typer.Argument(metavar="CLIENT", help="The client's id.")]
MessageId = Annotated[UUID, typer.Argument(metavar="ID", help="The message's id.")]
Limit = Annotated[int | None, typer.Option(min=1, max=500, help="How many rows; 50 by default.")]
Cursor = Annotated[
    str | None, typer.Option(help="Where the last page ended: its next_cursor.", metavar="CURSOR")
]

_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings. Default: $SMSGW_CONFIG, else ./smsgw.toml if it exists.",
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Data directory. Default: $SMSGW_DATA, else ./smsgw-data."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a command was called, apart from its own arguments."""

    context: typer.Context = field(repr=False)
    config_given: Path | None = None
    data_given: Path | None = None
    as_json: bool = False

    @property
    def data(self) -> Path:
        """The data directory."""
        data = self.data_given or Path(os.environ.get("SMSGW_DATA") or "smsgw-data")
        return data.absolute()

    @property
    def config(self) -> Path | None:
        """The settings file; None where there is none and none was asked for."""
        if self.config_given is not None:
            return self.config_given
        if in_environment := os.environ.get("SMSGW_CONFIG"):
            return Path(in_environment)
        here = Path("smsgw.toml")
        return here if here.exists() else None

    def settings(
        self, overrides: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    ) -> "Settings":
        """The effective settings.

        Raises:
            SettingsError: naming every mistake.
        """
        from smsgw.settings import load

        return load(self.config, os.environ, overrides)

    def door(self, *, creates: bool = False) -> Door:
        """The way to the API; ``creates`` also where there is no store yet."""
        purpose = self.context.command_path.removeprefix(f"{PROGRAM} ")
        return open_door(self.data, self.settings, purpose, creates=creates)

    def ask(self, method: str, path: str, *, creates: bool = False, **request: Any) -> Any:
        """Make one request and return the document; see ``Door.ask``."""
        with self.door(creates=creates) as door:
            return door.ask(method, path, **request)

    def show(self, document: Any, people: Callable[[Any], None]) -> None:
        """Print a document as JSON, or as people like it."""
        if self.as_json:
            output.json_document(document)
        else:
            people(document)

    def show_list(self, document: Any, *columns: str) -> None:
        """Print a list of the API as JSON, or as a table."""
        self.show(document, lambda page: output.page(page, columns))


_Parameters = ParamSpec("_Parameters")


def placed(
    function: Callable[Concatenate[Invocation, _Parameters], None],
) -> Callable[..., None]:
    """Add the common options to a command, which gets them as its first argument.

    What is given after a command wins over what is given before it.
    """

    @functools.wraps(function)
    def command(*args: Any, **arguments: Any) -> None:
        context: typer.Context = arguments.pop("context")
        before: Invocation = context.obj or Invocation(context)
        at = Invocation(
            context,
            arguments.pop("config") or before.config_given,
            arguments.pop("data") or before.data_given,
            arguments.pop("as_json") or before.as_json,
        )
        context.obj = at
        function(at, *args, **arguments)

    # Typer learns from the signature what a command takes.
    named = inspect.Parameter.KEYWORD_ONLY
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [
        *(parameter.replace(kind=named) for parameter in own),
        inspect.Parameter("config", named, annotation=_Config, default=None),
        inspect.Parameter("data", named, annotation=_Data, default=None),
        inspect.Parameter("as_json", named, annotation=_Json, default=False),
        inspect.Parameter("context", named, annotation=typer.Context),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def group(does: str) -> typer.Typer:
    """A command that only has commands below it."""
    commands = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @commands.callback(invoke_without_command=True, help=does)
    @placed
    def only_with_a_command(at: Invocation) -> None:
        if at.context.invoked_subcommand is None:
            print(at.context.get_help(), file=sys.stderr)
            raise typer.Exit(2)

    return commands
