"""TLS with operators: their certificates are always checked, ours is shown where one is set."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from smsgw.errors import SettingsError

T = TypeVar("T")


def client_context(name: str, ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """The rules for TLS with one operator.

    Args:
        name: the operator's.
        ca_file: certificates to trust in place of the system's; "" for the system's.
        cert_file: our certificate; "" for none.
        key_file: its key, where that is not in the same file.

    Raises:
        SettingsError: a file cannot be read, or is not what it should be.
    """
    context = _loaded(
        name, "tls_ca_file", lambda: ssl.create_default_context(cafile=ca_file or None)
    )
    if cert_file:
        if key_file:
            # What reads both files does not say which of them it cannot read.
            _loaded(name, "tls_key_file", lambda: Path(key_file).open("rb").close())
        # Without a password it would ask at the terminal for one.
        _loaded(
            name,
            "tls_cert_file",
            lambda: context.load_cert_chain(cert_file, key_file or None, lambda: b""),
        )
    return context


def _loaded(name: str, key: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (OSError, ValueError) as error:
        # A name that no file can have is a ValueError.
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else None
        mistake = f"providers.{name}.{key}: {why or 'cannot be used'}"
        raise SettingsError(mistake, mistakes=[mistake]) from error
