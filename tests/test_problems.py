import json
import math

import pytest

from smsgw import errors
from smsgw.api.problems import PROBLEMS, problem, problem_response
from smsgw.errors import SmsgwError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SmsgwError) and "code" in vars(value)
]
BY_CODE = {error_class.code: error_class for error_class in CLASSES}


def headers_of(error: SmsgwError) -> dict[str, str]:
    _, _, headers = problem(error)
    return {name.decode(): value.decode() for name, value in headers}


def test_every_code_has_one_status_and_every_status_a_code() -> None:
    assert PROBLEMS.keys() == BY_CODE.keys()


def test_the_statuses_are_those_we_document() -> None:
    by_status: dict[int, set[str]] = {}
    for code, (status, _) in PROBLEMS.items():
        by_status.setdefault(status, set()).add(code)
    assert by_status == {
        400: {
            "invalid_request",
            "invalid_recipient",
            "invalid_sender",
            "text_too_long",
            "conflicting_options",
            "invalid_id",
            "malformed_request",
        },
        401: {"invalid_token"},
        402: {"insufficient_credits"},
        403: {"forbidden_host"},
        404: {"unknown_client", "unknown_message", "unknown_route", "no_live_code"},
        405: {"method_not_allowed"},
        408: {"request_timeout"},
        409: {"not_cancellable", "already_exists", "idempotency_in_progress"},
        413: {"body_too_large"},
        415: {"unsupported_media_type"},
        422: {"idempotency_mismatch"},
        429: {"too_many_requests", "backlog_full"},
        431: {"headers_too_large"},
        500: {"internal_error"},
        503: {
            "otp_undeliverable",
            "express_guarantee_unavailable",
            "storage_unavailable",
            "shutting_down",
            "not_ready",
            "too_many_connections",
        },
    }


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda error_class: error_class.code)
def test_every_error_becomes_a_whole_problem_document(error_class: type[SmsgwError]) -> None:
    error = error_class()
    status, body, headers = problem(error)
    document = json.loads(body)
    expected_status, title = PROBLEMS[error.code]
    assert status == expected_status
    assert document == {
        "type": f"urn:smsgw:problem:{error.code}",
        "title": title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
        "error": error.detail,
    }
    assert (b"content-type", b"application/problem+json") in headers
    assert (b"content-length", str(len(body)).encode()) in headers


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda error_class: error_class.code)
def test_retry_after_stands_on_429_and_503_but_never_on_otp(error_class: type[SmsgwError]) -> None:
    headers = headers_of(error_class())
    wanted = PROBLEMS[error_class.code][0] in (429, 503) and error_class.code != "otp_undeliverable"
    assert headers.get("retry-after") == ("1" if wanted else None)


@pytest.mark.parametrize("seconds", [-3.0, 0.0, 0.2, 1.0, 1.01, 59.5])
def test_retry_after_is_whole_seconds_rounded_up_and_at_least_one(seconds: float) -> None:
    expected = str(max(1, math.ceil(seconds)))
    assert headers_of(errors.BacklogFull(retry_after_s=seconds))["retry-after"] == expected
    assert headers_of(errors.NotReady(retry_after_s=seconds))["retry-after"] == expected


def test_retry_after_stands_on_any_other_error_that_knows_when() -> None:
    assert headers_of(errors.IdempotencyInProgress(retry_after_s=2))["retry-after"] == "2"
    assert "retry-after" not in headers_of(errors.OtpUndeliverable(retry_after_s=2))


def test_an_otp_refusal_says_the_known_sentence_whatever_its_detail() -> None:
    _, body, _ = problem(errors.OtpUndeliverable("The operator refused it.", submitted=True))
    document = json.loads(body)
    assert document["error"] == "OTP delivery failed - operator cannot deliver immediately"
    assert document["detail"] == "The operator refused it."
    assert document["submitted"] is True


def test_members_stand_beside_the_rest() -> None:
    _, body, _ = problem(errors.InsufficientCredits(required=10, credits=4))
    document = json.loads(body)
    assert (document["required"], document["credits"]) == (10, 4)
    assert document["status"] == 402


def test_a_member_cannot_take_the_place_of_a_standard_one() -> None:
    with pytest.raises(AssertionError):
        problem(errors.NotCancellable(status="SENT"))


def test_a_detail_that_quotes_a_lone_surrogate_can_be_sent() -> None:
    _, body, _ = problem(errors.InvalidRequest("bad: \ud800"))
    assert json.loads(body)["detail"] == "bad: \ud800"


def test_the_response_is_the_problem() -> None:
    error = errors.TooManyRequests(retry_after_s=7)
    status, body, headers = problem(error)
    response = problem_response(error)
    assert (response.status_code, response.body, response.raw_headers) == (status, body, headers)
