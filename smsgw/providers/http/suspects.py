"""Whose fault it is that an operator says that nothing can be sent: the link's, or a message's."""

from collections import OrderedDict
from typing import Final

IN_A_ROW: Final = 3
"""Different messages, with none accepted between them: then it is the link."""
SUSPECTS_MAX: Final = 10_000


class Suspects:
    """The messages at which an operator has said so.

    A wrong password and a number that is not allowed may both be answered with 403. If it is the
    link, nothing is accepted; if others are accepted between two tries, it is the message.
    """

    def __init__(self) -> None:
        self._in_a_row: set[str] = set()
        self._accepted = 0
        # How many had been accepted by then, the oldest first.
        self._said_at: OrderedDict[str, int] = OrderedDict()

    @property
    def is_the_link(self) -> bool:
        """Whether the operator has said so of several messages, and accepted none since."""
        return len(self._in_a_row) >= IN_A_ROW

    def accepted(self, message: str) -> None:
        """A message was accepted."""
        self._accepted += 1
        if self._said_at:
            self._in_a_row.clear()
            self._said_at.pop(message, None)

    def said_of(self, message: str) -> bool:
        """Note that the operator says so of a message.

        Returns:
            Whether it is the message: the operator said so before, and has accepted others since.
        """
        before = self._said_at.pop(message, self._accepted)
        self._said_at[message] = self._accepted
        if len(self._said_at) > SUSPECTS_MAX:
            self._said_at.popitem(last=False)
        if not self.is_the_link:
            self._in_a_row.add(message)
        return before < self._accepted
