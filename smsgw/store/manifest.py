"""What a backup says of itself: of which store, of when, and how to know each file again."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from smsgw.errors import StoreError
from smsgw.store.directory import CATALOG, KEY, MANIFEST
from smsgw.store.places_files import address

BLOCK_BYTES: Final = 1 << 20


class Kept(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    file: str
    bytes: int
    sha256: str


class KeptShard(Kept):
    """A shard's file, and what its audit has come to; sums are in cents."""

    shard: int
    at: str
    clients: int
    messages: int
    entries: int
    credits: int
    held: int
    charged: int


class Manifest(BaseModel):
    """The whole of it; ``at`` is the time of the catalog's copy, the last one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal[1] = 1
    version: str
    store: str
    epoch: int
    at: str
    shards: list[KeptShard]
    catalog: Kept
    key: Kept

    @property
    def files(self) -> list[Kept]:
        """All files but the manifest itself."""
        return [*self.shards, self.key, self.catalog]

    @property
    def bytes(self) -> int:
        """How large they are together."""
        return sum(one.bytes for one in self.files)

    def text(self) -> str:
        """As it stands in its file."""
        return self.model_dump_json(indent=2) + "\n"


def read(backup: Path) -> Manifest:
    """Read the manifest of a backup.

    Raises:
        StoreError: it is no backup, or its manifest is damaged.
    """
    path = backup / MANIFEST
    try:
        found = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{backup} is no whole backup: it has no {MANIFEST}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} is damaged or too new: {where} {first['msg']}") from error
    named = [(one.shard, one.file) for one in found.shards]
    others = [found.catalog.file, found.key.file]
    wanted = [(number, address(number)) for number in range(len(named))]
    if named != wanted or others != [CATALOG, KEY]:
        raise StoreError(f"{path} is damaged: it names other files than there are in a backup")
    return found


def hashed(path: Path, tell: Callable[[bytes], object]) -> tuple[int, str]:
    """How many bytes a file has, and their SHA-256.

    Args:
        path: of the file.
        tell: given its bytes, block by block.
    """
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            count += len(block)
            tell(block)
    return count, digest.hexdigest()
