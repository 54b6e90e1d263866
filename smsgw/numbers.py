r"""Phone numbers and sender names: what ``to`` and ``from`` may be.

Everything is matched in full and with ASCII digits only; ``$`` and ``\d`` would let a trailing
newline and the digits of other scripts through. Clean E.164 never costs more than one regular
expression: the library for national forms is loaded only where a default region is set.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from smsgw.errors import InvalidRecipient, InvalidSender, SettingsError

NATIONAL_CACHE_MAX = 10_000
SENDER_CACHE_MAX = 10_000
TYPED_CHARACTERS_MAX = 64
NAME_CHARACTERS_MAX = 11

_is_e164 = re.compile(r"\+[1-9][0-9]{6,14}").fullmatch
_is_short_code = re.compile(r"[0-9]{3,8}").fullmatch
_is_dialled = re.compile(r"\+?[0-9]{3,20}").fullmatch

# The printable GSM-7 alphabet once more, because ``text`` stands on the same floor; here it is
# sorted into letters, of which a name needs one, and all else, and a test compares the two.
_LETTERS = "A-Za-zÄÅÆÇÉÑÖØÜßàäåæèéìñòöøùüΓΔΘΛΞΠΣΦΨΩ"
_SYMBOLS = r" !\"#$%&'()*+,\-./0-9:;<=>?@_¡£¤¥§¿\^{}\\\[~\]|€"
_is_name = re.compile(
    f"(?=.{{0,10}}[{_LETTERS}])[{_LETTERS}{_SYMBOLS}]{{1,{NAME_CHARACTERS_MAX}}}"
).fullmatch

# What people type or paste between digits: spaces, dashes, dots, slashes, brackets and the
# invisible marks that set the direction of writing.
_SEPARATORS = (
    " \t-./()[]"
    "\u00a0\u2007\u2009\u202f"
    "\u2010\u2011\u2012\u2013\u2014\u2212"
    "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2066\u2067\u2068\u2069\ufeff"
)
_DIGITS = "0123456789"
_PERSIAN_DIGITS = "۰۱۲۳۴۵۶۷۸۹"
_ARABIC_DIGITS = "٠١٢٣٤٥٦٧٨٩"
_AS_DIALLED = str.maketrans(_PERSIAN_DIGITS + _ARABIC_DIGITS, _DIGITS + _DIGITS, _SEPARATORS)

SenderKind = Literal["e164", "short_code", "alphanumeric"]


class Numbers:
    """Reads recipients: E.164 alone, or with a default region also what people type there."""

    def __init__(self, default_region: str = "") -> None:
        """Prepare for a region.

        Args:
            default_region: two letters (ISO 3166), for example ``IR``; empty for E.164 alone.

        Raises:
            SettingsError: the region is unknown, or the extra ``numbers`` is not installed.
        """
        self._read: Callable[[str], str | None] | None = None
        self._refusal = "to must be in E.164 form: + and 7 to 15 digits, as in +15005550006"
        if default_region:
            self._read = lru_cache(maxsize=NATIONAL_CACHE_MAX)(_reader(default_region))
            self._refusal += f", or a valid number as it is dialled in {default_region}"

    def recipient(self, raw: str) -> str:
        """Return the E.164 form of a recipient.

        Raises:
            InvalidRecipient: it is no number; the sentence does not repeat it.
        """
        if _is_e164(raw):
            return raw
        if self._read is not None and len(raw) <= TYPED_CHARACTERS_MAX:
            dialled = raw.translate(_AS_DIALLED)
            if _is_dialled(dialled) and (number := self._read(dialled)) is not None:
                return number
        raise InvalidRecipient(self._refusal)


@lru_cache(maxsize=SENDER_CACHE_MAX)
def sender(raw: str) -> str:
    """Return a sender that is E.164, a short code, or an alphanumeric name, unchanged.

    A name has a letter and at most 11 characters, each of the GSM-7 alphabet.

    Raises:
        InvalidSender: it is none of these.
    """
    if _is_e164(raw) or _is_short_code(raw) or _is_name(raw):
        return raw
    raise InvalidSender(
        "from must be in E.164 form, or 3 to 8 digits, or 1 to 11 GSM-7 characters with a letter"
    )


def kind_of(sender: str) -> SenderKind:
    """Tell which of its three forms a valid sender has."""
    if _is_e164(sender):
        return "e164"
    if _is_short_code(sender):
        return "short_code"
    return "alphanumeric"


def masked(number: str) -> str:
    """Hide all but the last four characters, for logs."""
    return "*" * (len(number) - 4) + number[-4:]


def _reader(region: str) -> Callable[[str], str | None]:
    """Return a function from what is dialled in a region (``+`` and digits) to E.164 or None."""
    try:
        import phonenumbers
    except ImportError as error:
        raise SettingsError(
            "numbers.default_region needs a library: pip install 'smsgw[numbers]'"
        ) from error
    if region not in phonenumbers.SUPPORTED_REGIONS:
        raise SettingsError(
            f"numbers.default_region: {region!r} is not a region; use two letters such as 'IR'"
        )

    def valid(dialled: str) -> str | None:
        try:
            number = phonenumbers.parse(dialled, region)
        except phonenumbers.NumberParseException:
            return None
        if not phonenumbers.is_valid_number(number):
            return None
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)

    def read(dialled: str) -> str | None:
        number = valid(dialled)
        if number is None and dialled.startswith("00"):
            # 00 is the prefix people know even where the region's own is another (011 in the US).
            number = valid("+" + dialled[2:])
        if number is None:
            # Written in E.164 but for spaces or digits: trusted like clean E.164.
            number = dialled
        return number if _is_e164(number) else None

    return read
