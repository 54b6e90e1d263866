"""What is asked for besides sending: new clients, credit, pausing, cancelling."""

from collections.abc import Sequence

from smsgw import ledger, lifecycle
from smsgw.admission import KeyUse, known, remember, replayed, want_client
from smsgw.errors import NotCancellable, UnknownMessage
from smsgw.ids import slot_of
from smsgw.models import ANSWER_ADJUSTED, Account
from smsgw.turn import Request, Turn, Wants


class AddClient(Request):
    """Create a client."""

    __slots__ = ("credit_cents", "name", "only_if_new", "weight")

    def __init__(
        self,
        client_id: bytes,
        name: str,
        weight: int = 1,
        credit_cents: int = 0,
    ) -> None:
        super().__init__(client_id)
        self.name = name
        self.weight = weight
        self.credit_cents = credit_cents

    def needs(self, wants: Wants) -> None:
        """Whether it is there already."""
        wants.clients.add(self.client_id)

    def decide(self, turn: Turn) -> None:
        """Answer the account and True, or the one that is there already and False."""
        if self.client_id in turn.account_of:
            self.answer = (turn.account_of[self.client_id], False)
            return
        account = Account(
            number=turn.next_client,
            id=self.client_id,
            slot=slot_of(self.client_id),
            name=self.name,
            weight=self.weight,
            created_at_ms=turn.now_ms,
            credits_cents=0,
            held_cents=0,
            charged_cents=0,
            sequence=0,
            waiting=0,
            paused=0,
        )
        turn.next_client += 1
        turn.add_account(account)
        if self.credit_cents:
            ledger.adjust(turn, account, self.credit_cents, "opening credit")
        self.answer = (account, True)


class Adjust(Request):
    """Add to a client's credit, or take from it."""

    __slots__ = ("amount_cents", "key", "note")

    def __init__(
        self, client_id: bytes, amount_cents: int, note: str | None, key: KeyUse | None
    ) -> None:
        super().__init__(client_id)
        self.amount_cents = amount_cents
        self.note = note
        self.key = key

    def needs(self, wants: Wants) -> None:
        """The account, and what the key did."""
        want_client(wants, self.client_id, self.key)

    def decide(self, turn: Turn) -> None:
        """Answer the account; a repeat of a key changes nothing."""
        account = known(turn, self.client_id)
        if replayed(turn, account, self.key) is None:
            ledger.adjust(turn, account, self.amount_cents, self.note)
            remember(turn, account, self.key, account.sequence, ANSWER_ADJUSTED)
        self.answer = account


class PauseClient(Request):
    """Stop, or resume, claiming a client's messages."""

    __slots__ = ("paused",)

    def __init__(self, client_id: bytes, *, paused: bool) -> None:
        super().__init__(client_id)
        self.paused = paused

    def needs(self, wants: Wants) -> None:
        """The account."""
        wants.clients.add(self.client_id)

    def decide(self, turn: Turn) -> None:
        """Answer the account."""
        account = known(turn, self.client_id)
        account.paused = int(self.paused)
        turn.touch_account(account)
        self.answer = account


class Cancel(Request):
    """Cancel a message that was not handed over yet."""

    __slots__ = ("identifier", "number")

    def __init__(self, client_id: bytes, number: int, identifier: bytes) -> None:
        super().__init__(client_id)
        self.number = number
        self.identifier = identifier

    def needs(self, wants: Wants) -> None:
        """The account and the message."""
        wants.clients.add(self.client_id)
        wants.messages.add(self.number)

    def decide(self, turn: Turn) -> None:
        """Cancel and release; only of the client's own."""
        account = known(turn, self.client_id)
        message = turn.messages.get(self.number)
        if message is None or message.id != self.identifier or message.client != account.number:
            raise UnknownMessage
        if not lifecycle.cancel(turn, message):
            status = lifecycle.status_name(message.status)
            raise NotCancellable(f"The message is {status}; it can no longer be cancelled.")


class CancelMany(Request):
    """Cancel those of some messages that still can be; the answer is how many were."""

    __slots__ = ("numbers",)

    def __init__(self, client_id: bytes, numbers: Sequence[int]) -> None:
        super().__init__(client_id)
        self.numbers = numbers

    @property
    def units(self) -> int:  # type: ignore[override]
        """How many messages it may change."""
        return len(self.numbers)

    def needs(self, wants: Wants) -> None:
        """The account and the messages."""
        wants.clients.add(self.client_id)
        wants.messages.update(self.numbers)

    def decide(self, turn: Turn) -> None:
        """Cancel and release."""
        account = known(turn, self.client_id)
        self.answer = 0
        for number in self.numbers:
            message = turn.messages.get(number)
            if message is not None and message.client == account.number:
                self.answer += lifecycle.cancel(turn, message)
