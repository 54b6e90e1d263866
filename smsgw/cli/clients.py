"""Clients and their money: ``client``, ``credit``, ``report``."""

from typing import Annotated
from uuid import UUID

import typer

from smsgw.cli import output
from smsgw.cli.options import CENTS_MAX, Client, Cursor, Invocation, Limit, group, placed

clients = group("Create and show clients.")
credit = group("Show and change a client's credit, in cents.")

_Cents = Annotated[
    int, typer.Argument(metavar="CENTS", min=1, max=CENTS_MAX, help="How many cents.")
]
_Note = Annotated[str | None, typer.Option(help="Why; shown in the history.")]
_Key = Annotated[
    str | None, typer.Option(help="A name for this change: repeated under it, nothing happens.")
]
_REPORT_COLUMNS = ("key", "messages", "parts", "held", "charged", "released", "delivered_share")


@clients.command()
@placed
def create(
    at: Invocation,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    identifier: Annotated[UUID | None, typer.Option("--id", help="Its id; random if left out.")] = (
        None
    ),
    credit_cents: Annotated[
        int, typer.Option("--credit", min=0, max=CENTS_MAX, help="Opening credit in cents.")
    ] = 0,
    weight: Annotated[
        int, typer.Option(min=1, max=1000, help="Its share, as against other clients.")
    ] = 1,
) -> None:
    """Create a client and print its id."""
    body = {
        "name": name,
        "id": None if identifier is None else str(identifier),
        "credit_cents": credit_cents,
        "weight": weight,
    }
    created = at.ask("POST", "/admin/clients", body=body, creates=True)
    at.show(created, lambda client: print(client["id"]))


@clients.command("list")
@placed
def list_clients(at: Invocation) -> None:
    """List all clients."""
    at.show_list(
        at.ask("GET", "/admin/clients"),
        *("id", "name", "credits", "held", "charged", "weight", "waiting", "paused"),
    )


@clients.command("show")
@placed
def show_client(at: Invocation, client: Client) -> None:
    """Show a client."""
    at.show(at.ask("GET", f"/admin/clients/{client}"), output.fields)


@credit.command()
@placed
def add(
    at: Invocation, client: Client, cents: _Cents, note: _Note = None, key: _Key = None
) -> None:
    """Add to a client's credit."""
    _adjust(at, "add", client, cents, note, key)


@credit.command()
@placed
def deduct(
    at: Invocation, client: Client, cents: _Cents, note: _Note = None, key: _Key = None
) -> None:
    """Take from a client's credit; never below zero."""
    _adjust(at, "deduct", client, cents, note, key)


def _adjust(
    at: Invocation, verb: str, client: UUID, cents: int, note: str | None, key: str | None
) -> None:
    body = {"amount_cents": cents, "note": note, "key": key}
    changed = at.ask("POST", f"/admin/clients/{client}/{verb}", body=body)
    at.show(changed, _show_money)


@credit.command("show")
@placed
def show_credit(at: Invocation, client: Client) -> None:
    """Show what a client has, what is held of it, and what was charged."""
    at.show(at.ask("GET", "/v1/me", query={"client_id": client}), _show_money)


def _show_money(account: dict[str, object]) -> None:
    output.fields({name: account[name] for name in ("id", "name", "credits", "held", "charged")})


@credit.command()
@placed
def history(at: Invocation, client: Client, limit: Limit = None, cursor: Cursor = None) -> None:
    """List every change of a client's credit, newest first."""
    query = {"client_id": client, "limit": limit, "cursor": cursor}
    at.show_list(
        at.ask("GET", "/v1/me/statement", query=query),
        *("at", "kind", "amount", "held", "balance_after", "message_id", "note"),
    )


@placed
def report(
    at: Invocation,
    client: Client,
    since: Annotated[
        str | None, typer.Option(help="First day, as in 2026-11-01; 30 days by default.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last day; today by default.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="A line for each day (the default), status or sender.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Count a client's messages and money."""
    query = {"client_id": client, "since": since, "until": until, "group_by": group_by}
    if as_csv and at.as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    with at.door() as door, output.working("counting"):
        if as_csv:
            page = door.read("GET", "/v1/reports", query=query, headers={"accept": "text/csv"})
            print(page, end="")
            return
        document = door.ask("GET", "/v1/reports", query=query)
    rows = [*document["data"], {"key": "total", **document["totals"]}]
    at.show(document, lambda _: output.table(rows, _REPORT_COLUMNS))
