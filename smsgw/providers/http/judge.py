"""What an operator's answer comes to: from an HTTP status, a code and an id to an outcome."""

import base64
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

from smsgw.models import Outcome, Verdict
from smsgw.operators import HttpProviderSettings
from smsgw.providers.base import Submission, fold
from smsgw.providers.http.reading import ID_CHARACTERS_MAX, find, parsed, plain, text_at
from smsgw.text import mask_digits

# The first that fits holds; those of the settings stand before them. A status that may come from
# something between us and the operator, after it has passed the message on, leaves it unknown; so
# does a redirect, which may lead to a page about a message that was taken.
STATUSES: Final[Mapping[str, str]] = {
    "200-299": "accepted",
    "300-399": "unknown",
    "401-405": "trouble",
    "407": "trouble",
    "408": "failed",
    "410": "trouble",
    "415": "trouble",
    "425": "failed",
    "429": "throttled",
    "400-499": "refused",
    "501": "trouble",
    "503": "failed",
    "505": "trouble",
    "500-599": "unknown",
}
LINK_FAULTS: Final = frozenset({502, 504})
"""Something between us and the operator says that it had no answer of it."""
ANY_CODE: Final = "*"
CODE_CHARACTERS_MAX: Final = 64
DETAIL_CHARACTERS_MAX: Final = 200
RETRY_AFTER_S_MAX: Final = 3600.0
HIDDEN_MIN: Final = 4
"""Characters; what is shorter is in every other word."""

_VERDICTS: Final = {
    "accepted": Verdict.ACCEPTED,
    "refused": Verdict.REFUSED,
    "failed": Verdict.FAILED,
    "throttled": Verdict.THROTTLED,
    "unknown": Verdict.UNKNOWN,
    # It is not the message that is wrong: it waits until the link works again.
    "trouble": Verdict.NOT_SENT,
}


@dataclass(slots=True, frozen=True)
class Answer:
    """What came back; ``body`` is None where it was too long or never ended."""

    status: int
    body: bytes | None
    retry_after: str | None = None


class Judge:
    """The settings of one operator about answers, made ready."""

    def __init__(self, settings: HttpProviderSettings, hidden: Collection[str]) -> None:
        """Prepare it.

        Args:
            settings: what its answers mean.
            hidden: what no error may repeat.
        """
        self._settings = settings
        found = {text for text in (*hidden, *map(_escaped, hidden)) if len(text) >= HIDDEN_MIN}
        self._hidden = sorted(found, key=len, reverse=True)
        self._statuses = list(_ranges({**settings.statuses}, STATUSES))
        self._by_code = "accepted" in settings.codes.values()

    def outcome(self, answer: Answer, submission: Submission) -> tuple[Outcome, str | None]:
        """The outcome, and what is wrong with the link where it is the link."""
        tree = None if answer.body is None else parsed(answer.body)
        settings = self._settings
        entries = find(tree, settings.parts_path) if settings.parts_path else None
        if not isinstance(entries, list) or not entries:
            entries = [tree]
        judged = [self._judge(answer, entry, submission) for entry in entries]
        return _whole([outcome for outcome, _ in judged], submission), next(
            (trouble for _, trouble in judged if trouble), None
        )

    def _judge(
        self, answer: Answer, entry: Any, submission: Submission
    ) -> tuple[Outcome, str | None]:
        settings = self._settings
        code = text_at(entry, settings.code_path, CODE_CHARACTERS_MAX)
        identifier = text_at(entry, settings.id_path, ID_CHARACTERS_MAX)
        word, why = self._word(answer.status, code), ""
        if word == "accepted" and settings.id_path and identifier is None:
            # Perhaps a page of something between us, perhaps an error dressed as a success.
            word, why = "unknown", "the answer has no id"
        elif word == "unknown" and 300 <= answer.status <= 399:
            why = "a redirect, which is not followed"
        link = f"HTTP {answer.status}"
        if code is not None:
            link += f", code {self._shown(code, otp=submission.otp)}"
        said = find(entry, settings.error_path) if settings.error_path else None
        shown = self._shown(said, otp=submission.otp) if isinstance(said, str) else ""
        verdict = _VERDICTS[word]
        if verdict is Verdict.ACCEPTED:
            return Outcome(verdict, identifier, receipts=settings.receipts), None
        detail = ": ".join(filter(None, (link, why, shown)))[:DETAIL_CHARACTERS_MAX]
        outcome = Outcome(
            verdict,
            detail=detail,
            retry_after_s=_seconds(answer.retry_after),
            # What passes for an answer, but is none of the operator's, is no answer either.
            timed_out=verdict is Verdict.UNKNOWN and (bool(why) or answer.status in LINK_FAULTS),
            answered=verdict is Verdict.NOT_SENT,
        )
        return outcome, f"the operator answers {link}" if word == "trouble" else None

    def _word(self, status: int, code: str | None) -> str:
        codes: Mapping[str, str] = self._settings.codes
        if code is not None and (word := codes.get(code) or codes.get(ANY_CODE)):
            return word
        word = next(word for low, high, word in self._statuses if low <= status <= high)
        # Where codes say what was accepted, a success without one is none.
        return "unknown" if word == "accepted" and self._by_code else word

    def _shown(self, text: str, *, otp: bool) -> str:
        """An operator's words without what is ours to keep; of a code, nothing that may be it."""
        for secret in self._hidden:
            text = text.replace(secret, "********")
        return plain(mask_digits(text) if otp else text, DETAIL_CHARACTERS_MAX)


def basic(user: str, password: str) -> str:
    """The value of an ``Authorization`` header with a name and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _escaped(secret: str) -> str:
    return quote(secret, safe="")


def _ranges(*tables: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    for table in tables:
        for statuses, word in table.items():
            low, _, high = statuses.partition("-")
            yield int(low), int(high or low), word
    yield 0, 999, "unknown"


def _whole(outcomes: list[Outcome], submission: Submission) -> Outcome:
    """What the outcomes of the parts come to.

    The operator cuts the text itself, so no part can be sent again alone: where some are taken,
    those that are not are lost.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    taken = sum(one.verdict is Verdict.ACCEPTED for one in outcomes)
    if not taken:
        return replace(fold(dict(enumerate(outcomes, 1))), parts=None)
    lost = [one.verdict not in (Verdict.ACCEPTED, Verdict.UNKNOWN) for one in outcomes]
    parts = {
        number: Outcome(Verdict.REFUSED, detail=one.detail) if is_lost else one
        for number, (one, is_lost) in enumerate(zip(outcomes, lost, strict=True), 1)
    }
    whole = replace(fold(parts), timed_out=False)
    if taken < len(outcomes):
        detail = f"{taken} of {len(outcomes)} parts were taken; {whole.detail}"
        whole = replace(whole, detail=detail[:DETAIL_CHARACTERS_MAX])
    return whole if len(outcomes) == submission.parts else replace(whole, parts=None)


def _seconds(retry_after: str | None) -> float | None:
    """A ``Retry-After`` in seconds, within reason; None where there is none."""
    if retry_after is None:
        return None
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return min(float(retry_after), RETRY_AFTER_S_MAX)
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), RETRY_AFTER_S_MAX)
