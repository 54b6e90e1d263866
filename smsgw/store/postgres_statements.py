"""SQL for PostgreSQL: named statements with their schema, the turn's functions, migrations.

Statements say ``shard.`` or ``catalog.`` before every table and function; the schema's own name is
put there. So nothing depends on the state of a session, and poolers may give every transaction
another one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, Final

from smsgw.store import statements
from smsgw.turn import QueueKey

CATALOG: Final = "smsgw_catalog"
"""The schema of the catalog, in the first database."""
WRITTEN_TOGETHER: Final = frozenset({"event_add", "timer_delete"})
"""Statements that a turn's one call carries out itself, since they come in numbers."""
_LOCK_WAIT_MS: Final = 5_000
_IDLE_MS_MAX: Final = 10_000
_TRANSACTIONS_LIMITED: Final = 170_000
"""The first version of PostgreSQL that limits how long a transaction takes."""
_PLACES: Final = re.compile(r"\b(shard|catalog)\.")


def schema_of(number: int) -> str:
    """The schema of a shard."""
    return f"smsgw_{number:02d}"


@cache
def _digest() -> str:
    """Of the text of the turn's functions."""
    text = repr(sorted(statements.load("postgres/turn").items()))
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _placed(sql: str, schema: str) -> str:
    placed = _PLACES.sub(f"{schema}.", sql)
    return re.sub(r"\b(turn_load|turn_write)\(", rf"\1_{_digest()}(", placed)


@cache
def shard_statements(schema: str, incarnation: int) -> Mapping[str, str]:
    """Every statement of a shard that is asked for by its name, as this gateway asks it."""
    return _own("sweep", "reads", schema=schema, incarnation=incarnation)


@cache
def audit_statements(schema: str, findings_max: int) -> Mapping[str, str]:
    """What an audit asks; of each check, so many rows.

    The plan is that of all rows: there are none, as a rule, and to find so few first is slow then.
    """
    found = {name: _placed(sql, schema) for name, sql in statements.load("postgres/audit").items()}
    for name, sql in found.items():
        if not name.startswith("proof_"):
            found[name] = (
                f"WITH found AS MATERIALIZED ({sql})"  # noqa: S608
                f" SELECT * FROM found LIMIT {findings_max:d}"
            )
    return found


@cache
def gateway_statements(schema: str, incarnation: int) -> Mapping[str, str]:
    """What a gateway asks a shard about itself and the others."""
    return _own("gateway", schema=schema, incarnation=incarnation)


def _own(*nouns: str, schema: str, incarnation: int) -> Mapping[str, str]:
    """Statements in which ``:own`` stands for the gateway that asks."""
    found = statements.load(*(f"postgres/{noun}" for noun in nouns))
    return {
        name: _placed(sql, schema).replace(":own", str(incarnation)) for name, sql in found.items()
    }


@cache
def catalog_statements() -> Mapping[str, str]:
    """Every statement of the catalog."""
    return {
        name: _placed(sql, CATALOG) for name, sql in statements.load("postgres/registry").items()
    }


@cache
def moving_statements(schema: str) -> Mapping[str, str]:
    """What is asked when a store moves, of a shard or of the catalog."""
    return {name: _placed(sql, schema) for name, sql in statements.load("postgres/moving").items()}


def functions(schema: str) -> dict[str, str]:
    """What makes the turn's functions, by the names they get."""
    return {
        f"{name}_{_digest()}": _placed(sql, schema)
        for name, sql in statements.load("postgres/turn").items()
    }


def migrations(noun: str, schema: str) -> list[tuple[int, str, str]]:
    """The numbered migrations of ``schema`` or ``catalog``: (number, name, script)."""
    steps = statements.migrations(f"postgres/{noun}")
    return [(number, name, _placed(script, schema)) for number, name, script in steps]


def begin(lease_s: float, version: int) -> str:
    """What begins a turn.

    One that stands still is ended by the server before its lease is. A session is not idle where a
    statement was prepared and not yet carried out: that, only servers from 17 on end. None ends one
    that waits for its client to take an answer: see ``overdue_end``.
    """
    return f"{begin_alone(lease_s, version)}; SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"


def begin_alone(lease_s: float, version: int) -> str:
    """The same for a change of the catalog, which waits for others as long as they may take."""
    limit = f"; SET LOCAL transaction_timeout = {round(lease_s * 1000)}"
    return begin_long(lease_s) + (limit if version >= _TRANSACTIONS_LIMITED else "")


def begin_long(lease_s: float) -> str:
    """The same for what may take long, but not because we stand still."""
    idle_ms = min(_IDLE_MS_MAX, round(lease_s * 500))
    return (
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
        f" SET LOCAL idle_in_transaction_session_timeout = {idle_ms}"
    )


def load_call(
    schema: str,
    gateway: int,
    incarnation: int,
    wanted: Sequence[Sequence[int | bytes]],
    *,
    passes_over: bool,
) -> str:
    """The call that loads a turn, as text that takes no parameters, like the one that writes it."""
    parameters = ", ".join(f"$wants${_array(values)}$wants$" for values in wanted)
    return (
        f"SELECT {schema}.turn_load_{_digest()}"
        f"('{gateway:d}', '{incarnation:d}', {parameters}, {passes_over})"
    )


def _array(values: Sequence[int | bytes]) -> str:
    """Numbers or bytes as PostgreSQL writes an array of them."""
    texts = (f'"\\\\x{v.hex()}"' if isinstance(v, bytes) else f"{v:d}" for v in values)
    return f"{{{','.join(texts)}}}"


def write_call(
    schema: str, document: Mapping[str, Any], numbers: Sequence[Sequence[tuple[int, ...]]]
) -> str:
    """The call that writes a turn, as text that takes no parameters.

    Only such text can be sent together with the COMMIT. The document stands between dollar quotes
    and holds no dollar sign, so that nothing in it can end them, whatever the server's settings.

    Args:
        schema: the shard's.
        document: what differs from row to row.
        numbers: rows that are numbers only, in the order of the function's parameters.
    """
    text = json.dumps(document, separators=(",", ":"))
    if "\\u0000" in text:
        text = json.dumps(storable(document), separators=(",", ":"))
    text = text.replace("$", "\\u0024")
    arrays = ", ".join(map(laid, numbers))
    return f"SELECT {schema}.turn_write_{_digest()}($turn${text}$turn$, {arrays})"


def push_call(lease_s: float, version: int, ranks: Mapping[QueueKey, int]) -> str:
    """What tells how far queues have come, and commits that, in one call."""
    rows = laid([(*key, rank) for key, rank in ranks.items()])
    push = catalog_statements()["virtual_push"].replace(":rows", rows)
    return f"{begin_alone(lease_s, version)}; {push}; COMMIT"


def laid(rows: Sequence[tuple[int, ...]]) -> str:
    """Rows of numbers laid end to end, as PostgreSQL writes an array of them."""
    # A number that is none, or has a fraction, is an error.
    row = ",".join(["{:d}"] * len(rows[0])).format if rows else str
    return f"'{{{','.join([row(*one) for one in rows])}}}'"


def storable(value: Any) -> Any:
    """A value without the one character that PostgreSQL keeps in no text: NUL."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, Mapping):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value
