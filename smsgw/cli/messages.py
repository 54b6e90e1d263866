"""The API from a shell: ``message`` and ``receipts``."""

import re
from typing import Annotated, Any, Final

import typer

from smsgw.cli import output
from smsgw.cli.call import Failed
from smsgw.cli.options import Client, Cursor, Invocation, Limit, MessageId, group, placed

messages = group("Send, show, list and cancel messages.")
receipts = group("Look at receipts.")

_COLUMNS: Final = ("id", "created_at", "status", "reason", "to", "from", "parts", "cost", "text")


def _visible(key: str | None) -> str | None:
    if key is not None and not re.fullmatch("[!-~]{1,255}", key):
        raise typer.BadParameter("must be 1 to 255 visible ASCII characters")
    return key


@messages.command()
@placed
def send(
    at: Invocation,
    client: Client,
    to: Annotated[str, typer.Argument(metavar="TO", help="The recipient: +15005550006.")],
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="The text; with --otp it may be left out."),
    ] = None,
    *,
    sender: Annotated[str, typer.Option("--from", help="The sender: a number or a name.")],
    otp: Annotated[bool, typer.Option("--otp", help="A one-time code: now or not at all.")] = False,
    express: Annotated[
        bool, typer.Option("--express", help="Ahead of others, at a surcharge.")
    ] = False,
    reference: Annotated[str | None, typer.Option(help="Your own id for it.")] = None,
    send_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="When, as in 2026-11-23T12:00:00Z.")
    ] = None,
    validity_s: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="When to give up, in seconds.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", callback=_visible, help="Repeated, it is sent once."),
    ] = None,
) -> None:
    """Send a message; without a running server it waits for one."""
    body = {
        "client_id": str(client),
        "to": to,
        "from": sender,
        "text": text,
        "otp": otp or None,
        "express": express or None,
        "reference": reference,
        "send_at": send_at,
        "validity_s": validity_s,
    }
    headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
    with at.door() as door:
        if otp and not door.serving:
            raise Failed("one-time codes need the running server; nothing was sent or held")
        answer = door.ask("POST", "/v1/messages", body=body, headers=headers)
    at.show(answer, output.fields)
    if not door.serving:
        output.complain("no server is running: queued until serve runs")


@messages.command("show")
@placed
def show_message(at: Invocation, identifier: MessageId) -> None:
    """Show a message and what happened to it."""
    at.show(at.ask("GET", f"/v1/messages/{identifier}"), _show_message)


def _show_message(message: dict[str, Any]) -> None:
    output.fields(message)
    if message["events"]:
        print()
        output.table(message["events"], ("at", "kind", "detail"))


@messages.command("list")
@placed
def list_messages(
    at: Invocation,
    client: Client,
    status: Annotated[str | None, typer.Option(help="Only those that are QUEUED, SENT, …")] = None,
    to: Annotated[str | None, typer.Option(help="Only those to this number.")] = None,
    reference: Annotated[str | None, typer.Option(help="Only those of this reference.")] = None,
    batch_id: Annotated[str | None, typer.Option(help="Only those of this batch.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not older than this.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Older than this.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List a client's messages, newest first."""
    query = {
        "client_id": client,
        "status": status,
        "to": to,
        "reference": reference,
        "batch_id": batch_id,
        "since": since,
        "until": until,
        "limit": limit,
        "cursor": cursor,
    }
    at.show_list(at.ask("GET", "/v1/messages", query=query), *_COLUMNS)


@messages.command()
@placed
def cancel(at: Invocation, client: Client, identifier: MessageId) -> None:
    """Cancel a message that no operator has yet."""
    body = {"client_id": str(client)}
    at.show(at.ask("POST", f"/v1/messages/{identifier}/cancel", body=body), _show_message)


@messages.command()
@placed
def uncertain(at: Invocation) -> None:
    """List messages of which nobody knows whether they left."""
    at.show_list(
        at.ask("GET", "/admin/messages/uncertain"),
        *("id", "client_id", "to", "provider", "provider_message_id", "submitted_at", "last_error"),
    )


@receipts.command()
@placed
def parked(at: Invocation) -> None:
    """List receipts for which no message is known."""
    at.show_list(
        at.ask("GET", "/admin/receipts/parked"),
        *("at", "provider", "provider_message_id", "status", "reason"),
    )
