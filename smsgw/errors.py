"""Every error that smsgw raises on purpose.

* SmsgwError
  + Refused                     the caller must change something; nothing was written
    - InvalidRequest              invalid_request
    - MalformedRequest            malformed_request
    - InvalidId                   invalid_id
    - InvalidRecipient            invalid_recipient
    - InvalidSender               invalid_sender
    - TextTooLong                 text_too_long
    - ConflictingOptions          conflicting_options
    - InvalidToken                invalid_token
    - ForbiddenHost               forbidden_host
    - InsufficientCredits         insufficient_credits
    - UnknownClient               unknown_client
    - UnknownMessage              unknown_message
    - UnknownRoute                unknown_route
    - NoLiveCode                  no_live_code
    - MethodNotAllowed            method_not_allowed
    - RequestTimeout              request_timeout
    - BodyTooLarge                body_too_large
    - UnsupportedMediaType        unsupported_media_type
    - HeadersTooLarge             headers_too_large
    - NotCancellable              not_cancellable
    - AlreadyExists               already_exists
    - IdempotencyInProgress       idempotency_in_progress
    - IdempotencyMismatch         idempotency_mismatch
    - TooManyRequests             too_many_requests
    - BacklogFull                 backlog_full
  + Broken                      we, a disk or an operator must change something
    - InternalError               internal_error
    - OtpUndeliverable            otp_undeliverable
    - ExpressGuaranteeUnavailable express_guarantee_unavailable
    - StorageUnavailable          storage_unavailable
    - ShuttingDown                shutting_down
    - NotReady                    not_ready
    - TooManyConnections          too_many_connections
  + CannotStart                 the gateway refuses to open; nothing was changed
    - SettingsError               a setting is wrong; names its key
    - StoreError                  a file is missing, foreign, damaged or in use

The docstring of a class is its default sentence, ``code`` its stable word on the wire. Which
HTTP status a code has is decided once, at the edge (``api/problems.py``).
"""

from typing import Any, ClassVar


class SmsgwError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal_error"

    def __init__(
        self, detail: str | None = None, *, retry_after_s: float | None = None, **members: Any
    ) -> None:
        """Keep a sentence for people and the members that programs read.

        Args:
            detail: one sentence; by default the first line of the class's docstring.
            retry_after_s: seconds after which trying again makes sense, if it ever does.
            members: extra members of the problem document, such as ``required``.
        """
        self.detail = detail or (type(self).__doc__ or "").splitlines()[0]
        self.retry_after_s = retry_after_s
        self.members = members
        super().__init__(self.detail)


class Refused(SmsgwError):
    """The request was refused; nothing was written."""


class InvalidRequest(Refused):
    """The request is not valid."""

    code = "invalid_request"


class MalformedRequest(Refused):
    """The request could not be read."""

    code = "malformed_request"


class InvalidId(Refused):
    """The id in the path is not a UUID."""

    code = "invalid_id"


class InvalidRecipient(Refused):
    """The recipient is not a phone number in E.164 form."""

    code = "invalid_recipient"


class InvalidSender(Refused):
    """The sender is neither a number, nor a short code, nor an alphanumeric name."""

    code = "invalid_sender"


class TextTooLong(Refused):
    """The text needs more parts than allowed."""

    code = "text_too_long"


class ConflictingOptions(Refused):
    """These options exclude each other."""

    code = "conflicting_options"


class InvalidToken(Refused):
    """The receipt token is missing or wrong."""

    code = "invalid_token"


class ForbiddenHost(Refused):
    """This Host or Origin is not served here."""

    code = "forbidden_host"


class InsufficientCredits(Refused):
    """The client's available credit does not cover this."""

    code = "insufficient_credits"


class UnknownClient(Refused):
    """There is no such client."""

    code = "unknown_client"


class UnknownMessage(Refused):
    """There is no such message."""

    code = "unknown_message"


class UnknownRoute(Refused):
    """There is no such route."""

    code = "unknown_route"


class NoLiveCode(Refused):
    """There is no live code for this client and number."""

    code = "no_live_code"


class MethodNotAllowed(Refused):
    """This route does not know this method."""

    code = "method_not_allowed"


class RequestTimeout(Refused):
    """The request did not arrive in time."""

    code = "request_timeout"


class BodyTooLarge(Refused):
    """The body is larger than allowed."""

    code = "body_too_large"


class UnsupportedMediaType(Refused):
    """The body must be application/json."""

    code = "unsupported_media_type"


class HeadersTooLarge(Refused):
    """The headers are larger than allowed."""

    code = "headers_too_large"


class NotCancellable(Refused):
    """The message can no longer be cancelled."""

    code = "not_cancellable"


class AlreadyExists(Refused):
    """There is one of that id already."""

    code = "already_exists"


class IdempotencyInProgress(Refused):
    """A request with this Idempotency-Key is still running."""

    code = "idempotency_in_progress"


class IdempotencyMismatch(Refused):
    """This Idempotency-Key was used with another request."""

    code = "idempotency_mismatch"


class TooManyRequests(Refused):
    """Too many requests; try again later."""

    code = "too_many_requests"


class BacklogFull(Refused):
    """Too many messages are waiting; try again later."""

    code = "backlog_full"


class Broken(SmsgwError):
    """The gateway could not do this now."""


class InternalError(Broken):
    """The gateway failed; this is a defect of ours."""

    code = "internal_error"


class OtpUndeliverable(Broken):
    """OTP delivery failed - operator cannot deliver immediately"""

    code = "otp_undeliverable"


class ExpressGuaranteeUnavailable(Broken):
    """The express guarantee could not be kept now, so it is not given."""

    code = "express_guarantee_unavailable"


class StorageUnavailable(Broken):
    """The storage of this client is not available now."""

    code = "storage_unavailable"


class ShuttingDown(Broken):
    """The gateway is shutting down."""

    code = "shutting_down"


class NotReady(Broken):
    """The gateway is not ready."""

    code = "not_ready"


class TooManyConnections(Broken):
    """Too many connections are open."""

    code = "too_many_connections"


class CannotStart(SmsgwError):
    """The gateway cannot start."""


class SettingsError(CannotStart):
    """A setting is wrong."""


class StoreError(CannotStart):
    """The data directory cannot be used."""
