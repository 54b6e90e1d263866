"""What a data directory that is lost was moving is opened again, by hand, and not by mistake."""

import shutil
from pathlib import Path

import pytest

from tests import postgres
from tests.stores import rows
from tests.test_migrate import (
    Stopped,
    _two_shards,
    cannot_open,
    data,
    filled,
    in_use,
    killed,
    migrate,
    quiet,
    ran,
    refused,
    stop_at,
    url,
    views,
)

__all__ = ["_two_shards", "data", "filled", "url"]


def taken_over(
    data: Path,
    url: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Take a store over from a directory that is lost, and be told before what that would mean."""
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
    complaint = refused(capsys, "--data", data, "shards", "take-over")
    assert says in complaint
    assert "say --yes" in complaint
    there: str = ran(capsys, "--data", data, "shards", "take-over", "--yes")["there"]
    assert "no other data directory moves a store" in refused(
        capsys, "--data", data, "shards", "take-over"
    )
    monkeypatch.delenv("SMSGW_STORE__SHARD_URLS")
    return there


@pytest.mark.parametrize("step", ["copied", "proved", "decided"])
def test_a_store_whose_directory_was_lost_while_it_left_the_server_is_taken_over(
    data: Path,
    url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    migrate(data, url, quiet)
    before = views(data, url)
    with pytest.raises(Stopped):
        migrate(data, url, stop_at(step), back=True)
    shutil.rmtree(data)
    elsewhere = data.with_name("elsewhere")
    assert "another data directory" in cannot_open(elsewhere, url)
    says = "was moving this store to files: if it ended that, the store is there"
    assert taken_over(elsewhere, url, says, capsys, monkeypatch) == "the store, for every gateway"
    assert views(elsewhere, url) == before


def test_a_store_whose_directory_was_lost_when_it_had_come_is_taken_over(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = views(data)
    killed("decided", "--data", data, "migrate", "--to", url)
    shutil.rmtree(data)
    elsewhere = data.with_name("elsewhere")
    assert "another data directory" in cannot_open(elsewhere, url)
    taken_over(elsewhere, url, "whole and proved", capsys, monkeypatch)
    assert views(elsewhere, url) == before


@pytest.mark.parametrize("step", ["opened", "flipped"])
def test_a_store_whose_directory_was_lost_while_slots_moved_is_taken_over(
    data: Path,
    url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    migrate(data, url, quiet)
    before = views(data, url)
    ((slot,),) = rows(postgres.Schema(url), "SELECT slot FROM client ORDER BY number LIMIT 1")
    environ = {"SMSGW_STORE__SHARD_URLS": url}
    killed(step, "--data", data, "shards", "move", "--slot", slot, "--to", 1, **environ)
    shutil.rmtree(data)
    elsewhere = data.with_name("elsewhere")
    taken_over(elsewhere, url, "was moving slots", capsys, monkeypatch)
    after = views(elsewhere, url)
    assert after.keys() == before.keys()
    assert all(
        after[client]["messages"] == before[client]["messages"]
        for client in before
        if client != "parked"
    )


def test_an_unfinished_copy_of_a_directory_that_was_lost_is_removed(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = views(data)
    restored = Path(shutil.copytree(data, data.with_name("restored")))
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("copied"))
    shutil.rmtree(data)
    assert "is not empty" in refused(capsys, "--data", restored, "migrate", "--to", url)
    says = "what is here is no store: it would be removed"
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
    assert says in refused(capsys, "--data", restored, "shards", "take-over")
    there = ran(capsys, "--data", restored, "shards", "take-over", "--yes")["there"]
    assert there == "nothing any more"
    monkeypatch.delenv("SMSGW_STORE__SHARD_URLS")
    assert not migrate(restored, url, quiet).resumed
    assert views(restored, url) == before


def test_an_unfinished_copy_is_no_store_even_for_the_directory_that_has_lost_its_files(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        migrate(data, url, stop_at("copied"))
    (data / "catalog.db").unlink()
    for path in (data / "shards").iterdir():
        path.unlink()
    assert "holds an unfinished copy" in cannot_open(data, url)
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
    for to in (url, "files"):
        complaint = refused(capsys, "--data", data, "migrate", "--to", to)
        assert "no store" in complaint


def test_a_store_that_gateways_use_is_not_taken_over(
    data: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(data, url, quiet)
    monkeypatch.setenv("SMSGW_STORE__SHARD_URLS", url)
    elsewhere = data.with_name("elsewhere")
    complaint = refused(capsys, "--data", elsewhere, "shards", "take-over", "--yes")
    assert "no other data directory moves a store" in complaint
    with in_use(data, url):
        note = "INSERT INTO meta VALUES ('moving', 'nobody out')"
        rows(postgres.Schema(url, "smsgw_catalog"), note)
        complaint = refused(capsys, "--data", elsewhere, "shards", "take-over", "--yes")
        assert "1 other gateways use this store" in complaint
    monkeypatch.delenv("SMSGW_STORE__SHARD_URLS")
    complaint = refused(capsys, "--data", elsewhere, "shards", "take-over")
    assert "store.shard_urls does not say" in complaint
