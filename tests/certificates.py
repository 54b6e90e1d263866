"""A certificate authority for tests of TLS."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """PEM files as a user would name them in settings, and contexts for a server."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def for_server(self, *, ask_client: bool = False) -> ssl.SSLContext:
        """A server that shows its certificate, and asks for the client's if told so."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.server, self.server_key)
        if ask_client:
            context.load_verify_locations(self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def for_client(self, *, show: bool = False) -> ssl.SSLContext:
        """A client that trusts only this authority, and shows its own certificate if told so."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if show:
            context.load_cert_chain(self.client, self.client_key)
        return context


def new_certificates(folder: Path, *hosts: str) -> Certificates:
    """An authority of its own, a server's and a client's certificate, written to a folder.

    Args:
        folder: where the files go.
        hosts: names and addresses of the server; 127.0.0.1 and localhost if there are none.
    """
    authority = trustme.CA()
    server = authority.issue_cert(*(hosts or ("127.0.0.1", "localhost")))
    client = authority.issue_cert("client@example.com")
    made = Certificates(
        *(folder / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key"))
    )
    authority.cert_pem.write_to_path(str(made.authority))
    for certificate, path, key in (
        (server, made.server, made.server_key),
        (client, made.client, made.client_key),
    ):
        path.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
    return made
