"""Operators from a shell: ``provider``."""

from typing import Annotated, Any, Final

import typer

from smsgw.cli import output
from smsgw.cli.call import Failed
from smsgw.cli.options import Invocation, group, placed

providers = group("Look at operators, test them, and switch them on and off.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.")]

_COLUMNS: Final = (
    *("name", "kind", "state", "why", "resting_until", "prefixes", "priority", "weight"),
    *("in_flight", "window", "rate_parts_per_s", "answer_ms"),
)


@providers.command("list")
@placed
def list_providers(at: Invocation) -> None:
    """List all operators, and how they are."""
    found = at.ask("GET", "/admin/providers")
    at.show(found, lambda page: output.table([_flat(row) for row in page["data"]], _COLUMNS))


@providers.command()
@placed
def show(at: Invocation, name: Name) -> None:
    """Show an operator: how it is, its connections, its settings; secrets are masked."""
    at.show(at.ask("GET", _path(name)), _show)


@providers.command()
@placed
def enable(at: Invocation, name: Name) -> None:
    """Connect to an operator again, and send through it."""
    _switch(at, name, "enable")


@providers.command()
@placed
def disable(at: Invocation, name: Name) -> None:
    """Send nothing more through an operator, until it is enabled.

    What waits goes to others, what is in flight ends, and then its connections are closed. Unlike
    pause provider, which keeps messages waiting for it.
    """
    _switch(at, name, "disable")


def _switch(at: Invocation, name: str, verb: str) -> None:
    with at.door() as door, output.working(verb):
        now = door.ask("POST", f"{_path(name)}/{verb}")
    at.show(now, lambda one: output.fields(_state_of(one)))


@providers.command("test")
@placed
def try_out(
    at: Invocation,
    name: Name,
    to: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Send an SMS there; nobody is charged.")
    ] = None,
    sender: Annotated[
        str | None, typer.Option("--from", help="Its sender: a number or a name.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Its text.")] = None,
) -> None:
    """Test an operator that a running server is connected to; the exit code is 1 if it fails.

    Without a number, only the connections are looked at.
    """
    if to is None and (sender or text):
        raise typer.BadParameter("--from and --text need --to")
    with at.door() as door, output.working("testing"):
        body = {"to": to, "from": sender, "text": text}
        found = door.ask("POST", f"{_path(name)}/test", body=body)
    at.show(found, _show_test)
    if not found["ok"]:
        verdict = found.get("verdict")
        why = ": ".join(word for word in (verdict, found["detail"]) if word)
        raise Failed(f"the test of {name} has failed: {why}")


def _path(name: str) -> str:
    return f"/admin/providers/{name}"


def _state_of(one: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] for key in ("name", "state", "why")}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "prefixes": ", ".join(row["prefixes"]) or "all"}


def _show(one: dict[str, Any]) -> None:
    output.fields(_flat(one))
    for title in ("connections", "settings"):
        if one[title]:
            print(f"\n{title}")
            output.fields({f"  {key}": _line(value) for key, value in one[title].items()})


def _line(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _show_test(found: dict[str, Any]) -> None:
    if "verdict" not in found:
        print("ok" if found["ok"] else found["detail"])
        return
    identifiers = ", ".join(found["provider_message_ids"]) or None
    output.fields(
        {
            "verdict": found["verdict"],
            "provider message id": identifiers,
            "detail": found["detail"],
            "answered after": f"{found['answer_ms']} ms",
        }
    )
