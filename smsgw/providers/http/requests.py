"""What an operator is sent: the templates of its settings, filled for one message."""

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from smsgw import templates
from smsgw.operators import HttpProviderSettings
from smsgw.providers.base import Submission
from smsgw.providers.http.judge import basic

_CONTENT_TYPES: Final = {
    "json": "application/json",
    "form": "application/x-www-form-urlencoded",
}


@dataclass(slots=True, frozen=True)
class Request:
    """A request, its parts encoded; not for logs, as all of it may hold secrets."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


class Requests:
    """The requests that one operator is sent."""

    def __init__(self, name: str, settings: HttpProviderSettings) -> None:
        self._settings = settings
        self._secrets = {
            "account": settings.account,
            "key": settings.key.get_secret_value(),
            "secret": settings.secret.get_secret_value(),
        }
        self._token = settings.receipt_token.get_secret_value()
        self._callback_url = ""
        if settings.public_url:
            base_url = settings.public_url.rstrip("/")
            self._callback_url = f"{base_url}/v1/providers/{name}/dlr/{self._token}"
        self._url = templates.read(settings.address(settings.url))
        self._poll_url = templates.read(settings.address(settings.receipt_poll_url))
        self._query = templates.read_tree(settings.query)
        self._body = templates.read_tree(settings.body)
        self._headers = {
            header: templates.read(value.get_secret_value())
            for header, value in settings.headers.items()
        }
        self._authorization = self._authorize()

    @property
    def hidden(self) -> set[str]:
        """What no error may repeat."""
        given = [value.get_secret_value() for value in self._settings.headers.values()]
        whole = {self._secrets["key"], self._secrets["secret"], self._token, self._authorization}
        return whole | {text for text in given if not templates.names_in(text)}

    def submit(self, submission: Submission) -> Request:
        """The request that hands a message over."""
        values = self._values(submission)
        url = self._with_query(self._url.fill(values, _quoted), values)
        headers = self._filled_headers(values)
        body = None
        body_format = self._settings.body_format
        if body_format != "none" and self._settings.method != "GET":
            filled = templates.fill_tree(self._body, values)
            text = json.dumps(filled) if body_format == "json" else urlencode(filled, doseq=True)
            body = text.encode()
            if "content-type" not in map(str.lower, headers):
                headers["Content-Type"] = _CONTENT_TYPES[body_format]
        return Request(self._settings.method, url, headers, body)

    def poll(self, identifier: str) -> Request:
        """The request that asks what became of a message."""
        values = {**self._secrets, "id": identifier}
        headers = {
            name: header.fill(values)
            for name, header in self._headers.items()
            if all(place in values for _, place in header.places)
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        return Request("GET", self._poll_url.fill(values, _quoted), headers, None)

    def _authorize(self) -> str:
        secret = self._secrets["secret"]
        if self._settings.auth == "basic":
            return basic(self._secrets["key"] or self._secrets["account"], secret)
        return f"Bearer {secret}" if self._settings.auth == "bearer" else ""

    def _filled_headers(self, values: templates.Values) -> dict[str, str]:
        headers = {name: header.fill(values) for name, header in self._headers.items()}
        if self._authorization:
            headers["Authorization"] = self._authorization
        return headers

    def _with_query(self, url: str, values: templates.Values) -> str:
        query = urlencode(templates.fill_tree(self._query, values), doseq=True)
        if not query:
            return url
        return f"{url}{'&' if '?' in url else '?'}{query}"

    def _values(self, submission: Submission) -> dict[str, str | int]:
        settings = self._settings
        valid_s = max(int(submission.valid_s), settings.validity_s_min)
        validity_s = min(valid_s, settings.validity_s_max)
        return {
            **self._secrets,
            "attempt": submission.attempt,
            "callback_url": self._callback_url,
            "encoding": settings.ucs2_word if submission.ucs2 else settings.gsm7_word,
            "from": submission.sender,
            "from_digits": submission.sender.removeprefix("+"),
            "number": submission.number,
            "parts": submission.parts,
            "reference": submission.reference,
            "text": submission.text,
            "to": submission.recipient,
            "to_digits": submission.recipient.removeprefix("+"),
            "validity_ms": validity_s * 1000,
            "validity_s": validity_s,
        }


def _quoted(value: str) -> str:
    return quote(value, safe="")
