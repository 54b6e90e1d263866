"""One process owns a data directory, and says so; what cannot keep a promise is refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsgw.errors import StoreError
from smsgw.store import directory as module
from smsgw.store.directory import (
    DataDirectory,
    LockHeld,
    file_system,
    is_store,
    is_volatile,
    refuse_network,
)

HOLDS = """
import sys
from pathlib import Path
from smsgw.store.directory import DataDirectory
directory = DataDirectory.open(Path(sys.argv[1]), "serve")
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that owns the directory until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataDirectory]:
    found = DataDirectory.open(tmp_path / "data", "test", wait_s=0)
    yield found
    found.close()


def test_a_directory_that_another_process_owns_names_it(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(LockHeld, match=rf"in use by smsgw serve, process {holder.pid}$"):
        DataDirectory.open(tmp_path, "test", wait_s=0)


def test_a_lock_ends_with_its_process_however_that_ends(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    holder.kill()
    holder.wait()
    directory = DataDirectory.open(tmp_path, "test", wait_s=0)
    with pytest.raises(LockHeld, match=rf"smsgw test, process {os.getpid()}$"):
        DataDirectory.open(tmp_path, "test", wait_s=0)
    directory.close()


def test_a_lock_that_is_given_back_can_be_taken(tmp_path: Path) -> None:
    for _ in range(2):
        DataDirectory.open(tmp_path, "test", wait_s=0).close()


def test_a_lock_that_comes_free_while_waiting_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = DataDirectory.open(tmp_path, "test")
    monkeypatch.setattr("smsgw.store.directory.time.sleep", lambda _: first.close())
    DataDirectory.open(tmp_path, "test", wait_s=60).close()


def test_a_new_directory_is_for_its_owner_only(data: DataDirectory) -> None:
    assert data.path.stat().st_mode & 0o777 == 0o700
    assert (data.path / "shards").stat().st_mode & 0o777 == 0o700


def test_a_place_that_cannot_be_a_directory_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/data cannot be used: Not a directory"):
        DataDirectory.open(tmp_path / "file" / "data", "test")


@pytest.mark.parametrize(
    ("number", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x65735546, "FUSE")]
)
def test_a_network_file_system_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    monkeypatch.setattr(module, "file_system", lambda _: number)
    with pytest.raises(StoreError, match=f"is on {name}; SQLite's write-ahead log needs a local"):
        DataDirectory.open(tmp_path, "test")


@pytest.mark.parametrize("number", [0xEF53, 0x58465342, 0x9123683E, None])
def test_local_and_unknown_file_systems_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setattr(module, "file_system", lambda _: number)
    refuse_network(tmp_path)
    assert not is_volatile(tmp_path)


def test_memory_is_taken_and_known_to_be_volatile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "file_system", lambda _: 0x01021994)
    refuse_network(tmp_path)
    assert is_volatile(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux")
def test_the_number_of_a_file_system_is_the_kernels(tmp_path: Path) -> None:
    assert file_system(Path("/proc")) == 0x9FA0
    assert file_system(tmp_path / "nowhere") is None


def test_elsewhere_the_file_system_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert file_system(tmp_path) is None


def test_the_key_is_made_once_and_for_its_owner_only(data: DataDirectory) -> None:
    key = data.key()
    assert len(key) == 32
    assert data.key() == key
    assert (data.path / "otp.key").stat().st_mode & 0o777 == 0o600
    assert [found.name for found in data.path.glob("otp*")] == ["otp.key"]


def test_two_directories_have_two_keys(tmp_path: Path, data: DataDirectory) -> None:
    other = DataDirectory.open(tmp_path / "other", "test")
    assert other.key() != data.key()
    other.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_may_use_is_refused(data: DataDirectory, mode: int) -> None:
    data.key()
    (data.path / "otp.key").chmod(mode)
    with pytest.raises(StoreError, match=r"otp\.key can be read by others; chmod 600 it"):
        data.key()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_key_that_is_not_whole_is_refused(data: DataDirectory, content: bytes) -> None:
    data.key()
    (data.path / "otp.key").write_bytes(content)
    with pytest.raises(StoreError, match="is not 32 bytes long"):
        data.key()


def test_a_key_whose_making_was_interrupted_is_made_anew(data: DataDirectory) -> None:
    (data.path / "otp.new").write_bytes(b"half")
    (data.path / "otp.new").chmod(0o600)
    assert len(data.key()) == 32


def shards(data: DataDirectory, *names: str) -> set[str]:
    for name in names:
        (data.path / "shards" / name).write_bytes(b"content")
    return {"shards/00.db", "shards/01.db"}


def test_the_files_that_belong_there_are_taken(data: DataDirectory) -> None:
    data.check_shards(shards(data, "00.db", "01.db", "00.db-wal", "notes.txt"), new=False)


@pytest.mark.parametrize("new", [False, True])
def test_a_file_that_does_not_belong_there_is_named(data: DataDirectory, new: bool) -> None:
    addresses = shards(data, "00.db", "01.db", "02.db")
    with pytest.raises(StoreError, match=r"shards/02\.db does not belong to this store"):
        data.check_shards(addresses, new=new)


def test_a_missing_file_is_named(data: DataDirectory) -> None:
    addresses = shards(data, "00.db")
    data.check_shards(addresses, new=True)
    with pytest.raises(StoreError, match=r"shards/01\.db is missing"):
        data.check_shards(addresses, new=False)


def test_an_empty_file_is_named(data: DataDirectory) -> None:
    addresses = shards(data, "00.db", "01.db")
    (data.path / "shards" / "01.db").write_bytes(b"")
    data.check_shards(addresses, new=True)
    with pytest.raises(StoreError, match=r"shards/01\.db is empty"):
        data.check_shards(addresses, new=False)


def test_the_room_on_the_disk_is_known(data: DataDirectory) -> None:
    found = os.statvfs(data.path)
    assert 0 < data.free_bytes() <= found.f_blocks * found.f_frsize


def test_a_claim_is_whole_or_not_there(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            data.claim_for_server(4711)
    assert not is_store(data.path)
    data.claim_for_server(4711)
    data.claim_for_server(4711)
    assert is_store(data.path)
    with pytest.raises(StoreError, match="is of another store"):
        data.claim_for_server(4712)
