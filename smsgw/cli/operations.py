"""Running the gateway: ``serve``, ``pause``, ``resume``, ``status``, ``audit``, ``config``."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer

from smsgw import __version__
from smsgw.cli import output
from smsgw.cli.call import Failed
from smsgw.cli.options import Client, Invocation, group, placed
from smsgw.errors import SettingsError

config = group("Look at the settings.")

_SUMS: Final = ("clients", "messages", "entries", "credits", "held", "charged")


@placed
def serve(
    at: Invocation,
    host: Annotated[str | None, typer.Option(help="Address to listen on; server.host.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port to listen on, 0 for a free one; server.port."),
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="With a mock operator, a sandbox and demo clients.")
    ] = False,
) -> None:
    """Run the gateway until it is told to stop."""
    from smsgw import logs, settings
    from smsgw.api import server

    def load() -> settings.Settings:
        effective = at.settings({"server": {"host": host, "port": port}})
        return settings.with_dev(effective) if dev else effective

    effective = load()
    logs.setup(effective.log.level)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(server.serve(effective, at.data, dev=dev, load=load))
    except ExceptionGroup as failure:
        why = "something that must run has failed; the next start recovers"
        logs.get(__name__).error("serve.failed", why, error=failure)
        raise Failed(why) from failure


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def pausing(verb: str, does: str) -> typer.Typer:
    """The command ``pause`` or ``resume``."""
    commands = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @commands.callback(
        invoke_without_command=True, help=f"{does} sending: everything, one client or one operator."
    )
    @placed
    def everything(at: Invocation) -> None:
        if at.context.invoked_subcommand is None:
            tell(at)

    @commands.command("client", help=f"{does} sending one client's messages.")
    @placed
    def one_client(at: Invocation, client: Client) -> None:
        tell(at, client_id=str(client))

    @commands.command("provider", help=f"{does} sending through one operator.")
    @placed
    def one_provider(
        at: Invocation,
        name: Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.")],
    ) -> None:
        tell(at, provider=name)

    def tell(at: Invocation, **whom: str) -> None:
        # Before the first start, too, one may say that nothing is to be sent.
        with at.door(creates=not whom) as door, output.working(verb):
            state = door.ask("POST", f"/admin/{verb}", body=whom)
        at.show(state, lambda _: output.fields({"paused": _paused(state)}))

    return commands


@placed
def status(at: Invocation) -> None:
    """Show how the gateway is."""
    at.show(at.ask("GET", "/admin/status"), _show_status)


def _show_status(state: dict[str, Any]) -> None:
    ready = state["ready"]
    output.fields(
        {
            "server": "running" if state["serving"] else "not running",
            "ready": ready["status"] if "detail" not in ready else ready["detail"],
            "degraded": ", ".join(ready.get("degraded", ())) or None,
            "paused": _paused(state),
            "queued": f"{state['queued']['regular']} regular, {state['queued']['express']} express",
            "in flight": state["in_flight"],
            "receipts parked": state["receipts_parked"],
        }
    )
    if providers := [{"provider": name, **how} for name, how in state["providers"].items()]:
        print()
        output.table(providers, ("provider", "trouble", "paused"))
    print()
    output.table(
        state["shards"],
        ("shard", "clients", "credits", "held", "charged", "waiting", "wal_bytes", "trouble"),
    )


def _paused(state: Mapping[str, Any]) -> str:
    paused = state["paused"]
    words = ["everything"] if paused["all"] else []
    words += [f"provider {name}" for name in paused["providers"]]
    words += [f"client {identifier}" for identifier in paused["clients"]]
    return ", ".join(words) or "nothing"


@placed
def audit(at: Invocation) -> None:
    """Prove every sum, every hold and every shard.

    The exit code is 1 if anything is not as it must be.
    """
    with at.door() as door, output.working("proving"):
        document = door.ask("GET", "/admin/audit")
    at.show(document, _show_audit)
    if not document["clean"]:
        raise Failed(f"the audit found {len(document['findings'])} things that must not be")


def _show_audit(document: dict[str, Any]) -> None:
    shards = document["shards"]
    total = {"shard": "all", **{name: sum(row[name] for row in shards) for name in _SUMS}}
    output.table([*shards, total], ("shard", *_SUMS))
    print()
    if document["findings"]:
        output.table(document["findings"], ("client_id", "shard", "check", "detail"))
    else:
        print("clean")


@config.command()
@placed
def show(at: Invocation) -> None:
    """Show the effective settings, as TOML; secrets are masked."""
    from smsgw.settings import masked

    at.show(masked(at.settings()), _show_toml)


def _show_toml(settings: dict[str, Any]) -> None:
    tables = {name: table for name, table in settings.items() if name != "providers"}
    tables |= {f"providers.{name}": table for name, table in settings["providers"].items()}
    for name, table in tables.items():
        print(f"[{name}]")
        for key, value in table.items():
            print(f"{key} = {_toml(value)}")
        print()


def _toml(value: Any) -> str:
    """A value as TOML: all but tables is written as in JSON."""
    if isinstance(value, dict):
        pairs = [f"{_toml(key)} = {_toml(each)}" for key, each in value.items()]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@config.command()
@placed
def check(at: Invocation) -> None:
    """Check the settings, and name every mistake with its key; also what may not be meant."""
    from smsgw import fleet

    try:
        settings = at.settings()
        fleet.build(fleet.enabled(settings.providers))
    except SettingsError as error:
        for mistake in error.members["mistakes"]:
            output.complain(mistake)
        raise typer.Exit(1) from None
    doubts = fleet.doubts(settings.providers, settings.limits.unrouted)
    for doubt in doubts:
        output.complain(f"worth a look: {doubt}")
    at.show({"status": "ok", "doubts": doubts}, lambda _: print("ok"))


@placed
def version(at: Invocation) -> None:
    """Show the version."""
    at.show({"version": __version__}, lambda _: print(f"smsgw {__version__}"))
