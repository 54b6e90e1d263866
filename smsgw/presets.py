"""Operators that many use: the settings of ``kind = "http"`` that their public documents amount to.

A preset only fills in what was not set, so every line of it can be set otherwise, and ``smsgw
config show`` tells all of it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_TWILIO: Final = {
    "base_url": "https://api.twilio.com",
    "url": "{base_url}/2010-04-01/Accounts/{account}/Messages.json",
    "auth": "basic",
    "body_format": "form",
    "body": {
        "To": "{to}",
        "From": "{from}",
        "Body": "{text}",
        "StatusCallback": "{callback_url}",
        "ValidityPeriod": "{validity_s}",
    },
    "validity_s_max": 36_000,
    "id_path": "sid",
    "code_path": "code",
    "error_path": "message",
    # 14107 and 20429 are rates, 21611 is the queue of one sender.
    "codes": {"14107": "throttled", "20429": "throttled", "21611": "throttled"},
    "receipt_id": "MessageSid",
    "receipt_status": "MessageStatus",
    "receipt_reason": "ErrorCode",
    "receipt_to": "To",
    "receipt_from": "From",
    "receipt_words": {"canceled": "FAILED"},
    "receipt_poll_url": "{base_url}/2010-04-01/Accounts/{account}/Messages/{id}.json",
    "receipt_poll_status": "status",
}

_VONAGE: Final = {
    "base_url": "https://rest.nexmo.com",
    "url": "{base_url}/sms/json",
    "body_format": "form",
    "body": {
        "api_key": "{key}",
        "api_secret": "{secret}",
        "from": "{from_digits}",
        "to": "{to_digits}",
        "text": "{text}",
        "type": "{encoding}",
        "client-ref": "{reference}",
        "callback": "{callback_url}",
        "ttl": "{validity_ms}",
    },
    "gsm7_word": "text",
    "ucs2_word": "unicode",
    "validity_s_min": 20,
    # The status of HTTP is always 200; each part has an id and a code of its own.
    "parts_path": "messages",
    "id_path": "message-id",
    "code_path": "status",
    "error_path": "error-text",
    "codes": {
        "0": "accepted",
        "1": "throttled",
        "4": "trouble",  # credentials
        "5": "failed",
        "8": "trouble",  # account barred
        "9": "trouble",  # no credit
        "10": "throttled",
        "11": "trouble",  # account not enabled
        "14": "trouble",  # signature
        "23": "trouble",  # callback address
        "32": "trouble",  # signature and secret together
        "*": "refused",
    },
    "receipt_id": "messageId",
    "receipt_status": "status",
    "receipt_reason": "err-code",
    "receipt_reference": "client-ref",
    "receipt_to": "msisdn",
    "receipt_from": "to",
}

_KAVENEGAR: Final = {
    "base_url": "https://api.kavenegar.com",
    "url": "{base_url}/v1/{key}/sms/send.json",
    "body_format": "form",
    "body": {
        "receptor": "{to}",
        "sender": "{from_digits}",
        "message": "{text}",
        # The same number again is not sent again.
        "localid": "{number}",
    },
    "id_path": "entries.0.messageid",
    "code_path": "return.status",
    "error_path": "return.message",
    "codes": {
        "200": "accepted",
        "401": "trouble",  # account disabled
        "402": "failed",
        "403": "trouble",  # key
        "404": "trouble",  # method
        "405": "trouble",
        "407": "trouble",  # our address is not allowed
        "409": "throttled",  # "cannot answer now"
        "416": "trouble",  # our address again
        "418": "trouble",  # no credit
        "426": "trouble",  # service not bought
        "451": "throttled",
        "*": "refused",
    },
    "receipt_id": "messageid",
    "receipt_status": "status",
    "receipt_words": {
        "6": "FAILED",
        "10": "DELIVERED",
        "11": "UNDELIVERED",
        "13": "FAILED",
        "14": "REJECTED",
    },
    "receipt_poll_url": "{base_url}/v1/{key}/sms/status.json?messageid={id}",
    "receipt_poll_status": "entries.0.status",
}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {"twilio": _TWILIO, "vonage": _VONAGE, "kavenegar": _KAVENEGAR}
)


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over those of the preset they name; in tables key by key."""
    name = given.get("preset")
    preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
    whole = {**preset, **given}
    for key, ours in preset.items():
        if isinstance(ours, dict) and isinstance(theirs := given.get(key), Mapping):
            whole[key] = {**ours, **theirs}
    return whole
