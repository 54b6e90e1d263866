"""Operators with an HTTP interface, described in settings: ``kind = "http"``."""

from smsgw.errors import SettingsError
from smsgw.operators import HttpProviderSettings
from smsgw.providers.base import Provider


def open_provider(name: str, settings: HttpProviderSettings, receipt_timeout_s: float) -> Provider:
    """The operator of that name, not connected yet.

    Args:
        name: the operator's.
        settings: how it is reached, and what it says.
        receipt_timeout_s: how long it is asked about a message, where asking is the way.

    Raises:
        SettingsError: the library that speaks HTTP is not installed, or a file cannot be used.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        mistake = f"providers.{name}: kind http needs pip install 'smsgw[http]'"
        raise SettingsError(mistake, mistakes=[mistake]) from error
    from smsgw.providers.http.provider import HttpProvider

    return HttpProvider(name, settings, receipt_timeout_s)
