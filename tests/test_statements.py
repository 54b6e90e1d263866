"""SQL lives in named statements, each with a sentence, and is composed nowhere else."""

import ast
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from smsgw.ids import NUMBER_MAX
from smsgw.store.sqlite_thread import migrate
from smsgw.store.statements import execute_rows, load, migrations

ROOT = Path(__file__).parents[1] / "smsgw"
SQL = ROOT / "store" / "sql"
NOUNS = ["turn", "sweep", "reads", "audit"]
SCHEMAS = ["schema", "catalog"]
COMPOSERS = {
    # Names of their own temporary schemas and tables, for measuring.
    "bench/seed.py",
    "bench/servers.py",
    "store/statements.py",
    "store/sqlite_thread.py",
    "store/postgres_connection.py",
    "store/postgres_statements.py",
    "store/tables.py",
}
NAMED = ["sweep", "reads"]
"""What is asked for by name, whatever the store is."""
KEYWORDS = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|REPLACE|PRAGMA|CREATE|ALTER|DROP|ATTACH|VACUUM|BEGIN|WHERE)\b"
)


def bodies(noun: str) -> dict[str, str]:
    """Everything that follows each name."""
    pieces = re.split(r"^-- name: (\w+)$", (SQL / f"{noun}.sql").read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


EVERY = [(noun, name) for noun in NOUNS for name in bodies(noun)]


@pytest.fixture
def memory() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, migrations("schema"), 0)
        yield connection


def test_every_file_of_statements_is_known() -> None:
    assert {path.stem for path in SQL.glob("*.sql")} == {*NOUNS, *SCHEMAS}


@pytest.mark.parametrize(("noun", "name"), EVERY)
def test_a_statement_has_a_sentence(noun: str, name: str) -> None:
    comment, rest = re.match(r"\n((?:-- [^\n]*\n)*)(.*)", bodies(noun)[name], re.DOTALL).groups()  # type: ignore[union-attr]
    assert comment.endswith(".\n"), f"{name} does not say what it is for"
    assert rest.rstrip().endswith(";"), f"{name} does not end"
    assert rest.count(";") == 1, f"{name} is more than one statement"


@pytest.mark.parametrize(("noun", "name"), EVERY)
def test_a_statement_is_one_that_the_schema_understands(
    memory: sqlite3.Connection, noun: str, name: str
) -> None:
    sql = load(noun)[name]
    numbered = [int(number) for number in re.findall(r"\?(\d+)", sql)]
    if "{rows}" in sql:
        columns = max((int(n) for n in re.findall(r"column(\d+)", sql)), default=0)
        columns = columns or len(memory.execute(_table(sql)).description)
        sql = sql.replace("{rows}", "(" + ",".join("?" * columns) + ")")
    count = max(numbered, default=sql.count("?"))
    memory.execute(f"EXPLAIN {sql}", [None] * count)


@pytest.mark.parametrize(
    ("noun", "name"), [(noun, name) for noun, name in EVERY if noun in ("turn", "sweep", "reads")]
)
def test_no_statement_goes_through_a_whole_history(
    memory: sqlite3.Connection, noun: str, name: str
) -> None:
    sql = load(noun)[name].replace("{rows}", "(1, 2, 3)")
    if sql.startswith(("INSERT", "UPDATE")) and "VALUES (1, 2, 3)" in sql:
        return
    numbered = [int(number) for number in re.findall(r"\?(\d+)", sql)]
    count = max(numbered, default=sql.count("?"))
    plan = memory.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * count).fetchall()
    scans = [step[3] for step in plan if re.match(r"SCAN (message|entry|idempotency)\b", step[3])]
    assert not scans, scans


def _table(sql: str) -> str:
    """A query of the columns that rows of an INSERT must have."""
    match = re.match(r"INSERT INTO (\w+)(?: \(([^)]*)\))?", sql)
    assert match
    return f"SELECT {match[2] or '*'} FROM {match[1]}"


def test_names_are_unique_over_what_is_loaded_together() -> None:
    together = load("turn", "sweep", "reads")
    assert len(together) == sum(len(load(noun)) for noun in ("turn", "sweep", "reads"))


@pytest.mark.parametrize("noun", NAMED)
def test_what_is_asked_for_by_name_is_there_in_both_kinds_of_store(noun: str) -> None:
    assert list(bodies(noun)) == list(bodies(f"postgres/{noun}"))


def test_both_kinds_of_store_are_proved_alike() -> None:
    more = {"flows", "backlog", "flights", "proof_sums", "proof_client"}
    assert {*bodies("audit")} | more == {*bodies("postgres/audit")}


@pytest.mark.parametrize(
    "noun", ["audit", "gateway", "moving", "reads", "registry", "sweep", "turn"]
)
def test_a_statement_for_postgresql_has_a_sentence_too(noun: str) -> None:
    for name, body in bodies(f"postgres/{noun}").items():
        comment, rest = re.match(r"\n((?:-- [^\n]*\n)*)(.*)", body, re.DOTALL).groups()  # type: ignore[union-attr]
        assert comment.endswith(".\n"), f"{name} does not say what it is for"
        assert rest.rstrip().endswith(";"), f"{name} does not end"
        assert noun == "turn" or rest.count(";") == 1, f"{name} is more than one statement"


def test_every_statement_is_used() -> None:
    code = "\n".join(path.read_text() for path in ROOT.rglob("*.py"))
    unused = [name for noun, name in EVERY if noun != "audit" and f'"{name}"' not in code]
    assert unused == []


@pytest.mark.parametrize("noun", [*SCHEMAS, *(f"postgres/{noun}" for noun in SCHEMAS)])
def test_migrations_are_numbered_and_named(noun: str) -> None:
    found = migrations(noun)
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
    assert all(re.fullmatch(r"[\w ]+", name) for _, name, _ in found)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 31, 32, 33, 127, 128, 129, 300])
def test_a_wide_statement_takes_every_row_once_and_in_order(
    memory: sqlite3.Connection, count: int
) -> None:
    memory.execute("CREATE TABLE pair (a INTEGER, b TEXT) STRICT")
    rows = [(n, str(n)) for n in range(count)]
    assert execute_rows(memory, "INSERT INTO pair VALUES {rows}", rows) == []
    assert memory.execute("SELECT * FROM pair ORDER BY rowid").fetchall() == rows
    sql = "SELECT p.b FROM (VALUES {rows}) AS v JOIN pair AS p ON p.a = v.column1"
    assert sorted(execute_rows(memory, sql, [(n,) for n, _ in rows])) == sorted(
        (b,) for _, b in rows
    )


def test_the_widest_row_fits_into_what_sqlite_takes(memory: sqlite3.Connection) -> None:
    row = [1, bytes(16), 1, 0, 1, None, 15005550006, "A", "t", 0, 1, 5, 5, 0, 0, None, None, 0, 0]
    row += [0, None, None, None, None, 1, None, None, None, 1, 0]
    memory.execute("PRAGMA foreign_keys = 0")
    rows = [[NUMBER_MAX - n, *row[1:]] for n in range(200)]
    execute_rows(memory, load("turn")["turn_add_messages"], rows)
    assert memory.execute("SELECT count(*) FROM message").fetchone() == (200,)


def composed(tree: ast.AST) -> list[ast.AST]:
    """Every place where a string with SQL in it is put together."""
    return [node for node in ast.walk(tree) if _composes(node)]


def _composes(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return any(map(_is_sql, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
        sides = (node.left, node.right)
        return any(map(_is_sql, sides)) and not all(map(_is_text, sides))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("format", "format_map", "join"):
            return _is_sql(node.func.value)
        known = (ast.Constant, ast.Name, ast.Subscript)
        return node.func.attr.startswith("execute") and not isinstance(node.args[0], known)
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_sql(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and bool(KEYWORDS.search(node.value))
    )


def test_no_sql_is_put_together_outside_of_the_modules_for_it() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in COMPOSERS:
            tree = ast.parse(path.read_text())
            wrong += [f"{name}:{node.lineno}" for node in composed(tree)]  # type: ignore[attr-defined]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        'f"SELECT * FROM {table}"',
        '"SELECT * FROM " + table',
        '"DELETE FROM %s" % table',
        '"PRAGMA {}".format(name)',
        "connection.execute(template.replace('x', table))",
    ],
)
def test_the_search_for_put_together_sql_finds_it(code: str) -> None:
    assert composed(ast.parse(code))
