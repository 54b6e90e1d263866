"""What an SMSC answers: the command_status of SMPP 3.4 and 5.0, and what each means for us."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final


class CommandStatus(IntEnum):
    """The codes that the standards name."""

    ESME_ROK = 0x00
    ESME_RINVMSGLEN = 0x01
    ESME_RINVCMDLEN = 0x02
    ESME_RINVCMDID = 0x03
    ESME_RINVBNDSTS = 0x04
    ESME_RALYBND = 0x05
    ESME_RINVPRTFLG = 0x06
    ESME_RINVREGDLVFLG = 0x07
    ESME_RSYSERR = 0x08
    ESME_RINVSRCADR = 0x0A
    ESME_RINVDSTADR = 0x0B
    ESME_RINVMSGID = 0x0C
    ESME_RBINDFAIL = 0x0D
    ESME_RINVPASWD = 0x0E
    ESME_RINVSYSID = 0x0F
    ESME_RCANCELFAIL = 0x11
    ESME_RREPLACEFAIL = 0x13
    ESME_RMSGQFUL = 0x14
    ESME_RINVSERTYP = 0x15
    ESME_RINVNUMDESTS = 0x33
    ESME_RINVDLNAME = 0x34
    ESME_RINVDESTFLAG = 0x40
    ESME_RINVSUBREP = 0x42
    ESME_RINVESMCLASS = 0x43
    ESME_RCNTSUBDL = 0x44
    ESME_RSUBMITFAIL = 0x45
    ESME_RINVSRCTON = 0x48
    ESME_RINVSRCNPI = 0x49
    ESME_RINVDSTTON = 0x50
    ESME_RINVDSTNPI = 0x51
    ESME_RINVSYSTYP = 0x53
    ESME_RINVREPFLAG = 0x54
    ESME_RINVNUMMSGS = 0x55
    ESME_RTHROTTLED = 0x58
    ESME_RINVSCHED = 0x61
    ESME_RINVEXPIRY = 0x62
    ESME_RINVDFTMSGID = 0x63
    ESME_RX_T_APPN = 0x64
    ESME_RX_P_APPN = 0x65
    ESME_RX_R_APPN = 0x66
    ESME_RQUERYFAIL = 0x67
    ESME_RINVOPTPARSTREAM = 0xC0
    ESME_ROPTPARNOTALLWD = 0xC1
    ESME_RINVPARLEN = 0xC2
    ESME_RMISSINGOPTPARAM = 0xC3
    ESME_RINVOPTPARAMVAL = 0xC4
    ESME_RDELIVERYFAILURE = 0xFE
    ESME_RUNKNOWNERR = 0xFF
    # From here on SMPP 5.0, without its broadcasts.
    ESME_RSERTYPUNAUTH = 0x100
    ESME_RPROHIBITED = 0x101
    ESME_RSERTYPUNAVAIL = 0x102
    ESME_RSERTYPDENIED = 0x103
    ESME_RINVDCS = 0x104
    ESME_RINVSRCADDRSUBUNIT = 0x105
    ESME_RINVDSTADDRSUBUNIT = 0x106


class StatusClass(StrEnum):
    """What a status means for the message and for the link.

    ``throttled`` slows the link and is no failure of the message; ``temporary`` may be tried
    again, ``refused`` may not. ``link`` says that we are not bound: the message goes back
    untouched and the link is bound anew, with backoff. ``link_config`` is the same where binding
    again cannot help (a wrong password): stop and alarm. ``protocol`` says that the two sides
    no longer understand each other: drop the link and bind anew.
    """

    ACCEPTED = "accepted"
    THROTTLED = "throttled"
    TEMPORARY = "temporary"
    REFUSED = "refused"
    LINK = "link"
    LINK_CONFIG = "link_config"
    PROTOCOL = "protocol"


ALARMING: Final = frozenset(range(0xC0, 0xC5))
"""Refusals of our optional parameters: a defect of ours or a peculiarity of the operator."""

_NAMES: Final = {int(status): status.name for status in CommandStatus}
_VENDOR: Final = range(0x400, 0x500)
_CLASSES: Final = {
    CommandStatus.ESME_ROK: StatusClass.ACCEPTED,
    CommandStatus.ESME_RINVCMDLEN: StatusClass.PROTOCOL,
    CommandStatus.ESME_RINVCMDID: StatusClass.PROTOCOL,
    CommandStatus.ESME_RINVBNDSTS: StatusClass.LINK,
    CommandStatus.ESME_RALYBND: StatusClass.LINK,
    CommandStatus.ESME_RBINDFAIL: StatusClass.LINK,
    CommandStatus.ESME_RINVPASWD: StatusClass.LINK_CONFIG,
    CommandStatus.ESME_RINVSYSID: StatusClass.LINK_CONFIG,
    CommandStatus.ESME_RINVSYSTYP: StatusClass.LINK_CONFIG,
    CommandStatus.ESME_RTHROTTLED: StatusClass.THROTTLED,
    CommandStatus.ESME_RSYSERR: StatusClass.TEMPORARY,
    # Often the queue of one recipient: slowing the whole link for it would punish the others.
    CommandStatus.ESME_RMSGQFUL: StatusClass.TEMPORARY,
    CommandStatus.ESME_RSUBMITFAIL: StatusClass.TEMPORARY,
    CommandStatus.ESME_RX_T_APPN: StatusClass.TEMPORARY,
    CommandStatus.ESME_RDELIVERYFAILURE: StatusClass.TEMPORARY,
    CommandStatus.ESME_RUNKNOWNERR: StatusClass.TEMPORARY,
    CommandStatus.ESME_RSERTYPUNAVAIL: StatusClass.TEMPORARY,
}
_PERMANENT: Final = (1, 2)
_DELIVERY_FAILURES: Final = (
    "destination unavailable",
    "destination address invalid",
    "permanent network error",
    "temporary network error",
)
_NO_OVERRIDES: Final[Mapping[int, StatusClass]] = MappingProxyType({})


def classify(
    code: int, overrides: Mapping[int, StatusClass] = _NO_OVERRIDES, failure: bytes = b""
) -> StatusClass:
    """Tell what a command_status means.

    Named codes that stand for no other class are refusals, and so are the vendors' codes, 0x400
    to 0x4FF. A code that nobody has named is temporary: attempts are bounded anyway.

    Args:
        code: the command_status.
        overrides: what the operator's manual says of its codes; 0 always means accepted.
        failure: the delivery_failure_reason (SMPP 3.4 §5.3.2.33) that came with
            ESME_RDELIVERYFAILURE: an invalid address or a permanent error is a refusal.
    """
    if code == CommandStatus.ESME_ROK:
        return StatusClass.ACCEPTED
    known = overrides.get(code) or _CLASSES.get(code)  # type: ignore[call-overload]
    if code == CommandStatus.ESME_RDELIVERYFAILURE and code not in overrides and failure:
        return StatusClass.REFUSED if failure[0] in _PERMANENT else StatusClass.TEMPORARY
    if known is not None:
        return known
    if code in _NAMES or code in _VENDOR:
        return StatusClass.REFUSED
    return StatusClass.TEMPORARY


def name(code: int) -> str:
    """A status as people look it up, for example ``ESME_RTHROTTLED (0x58)``."""
    return f"{_NAMES[code]} (0x{code:02X})" if code in _NAMES else f"0x{code:08X}"


def failure_name(failure: bytes) -> str:
    """A delivery_failure_reason in words; of none, nothing."""
    if not failure:
        return ""
    known = failure[0] < len(_DELIVERY_FAILURES)
    return _DELIVERY_FAILURES[failure[0]] if known else f"failure {failure[0]}"
