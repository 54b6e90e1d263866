"""The proof of a shard in PostgreSQL: the same checks as of a file, and of what is counted here."""

from collections.abc import Callable

from smsgw.ids import uuid_text
from smsgw.store import postgres_statements as statements
from smsgw.store.audit import FINDINGS_MAX, Finding, Proof
from smsgw.store.postgres_connection import PATIENT_S, Connection, fetch


async def audit(
    connection: Connection, schema: str, shard: int, step: Callable[[str], None] = lambda _: None
) -> Proof:
    """Prove a shard, as it is at one moment.

    Args:
        connection: a connection in a transaction that sees one moment.
        schema: where the shard is.
        shard: its number.
        step: called with the name of each check before it runs.

    Raises:
        ShardUnavailableError: the server cannot answer now.
    """
    named = statements.audit_statements(schema, FINDINGS_MAX)
    found: list[Finding] = []
    for name, sql in named.items():
        if name in (_SUMS, _IDS):
            continue
        step(name)
        for client, sentence in await fetch(connection, sql, timeout_s=PATIENT_S):
            ids = await fetch(connection, named[_IDS], client)
            found.append(Finding(shard, uuid_text(ids[0][0]) if ids else None, name, sentence))
    sums = await fetch(connection, named[_SUMS], timeout_s=PATIENT_S)
    ((clients, messages, entries, free, held, charged),) = sums
    return Proof(shard, clients, messages, entries, free, held, charged, found)


_SUMS = "proof_sums"
_IDS = "proof_client"
