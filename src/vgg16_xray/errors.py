"""What a user did wrong, where, and how to mend it.

Every error that a user can cause is one of these. The command line prints it as one line and turns it into an exit
code; a server would turn it into an HTTP status.
"""

from __future__ import annotations

import re

#: Exit codes of the command line: everything done; some of the inputs failed; wrong usage or unusable input.
EXIT_DONE, EXIT_SOME_FAILED, EXIT_UNUSABLE = 0, 1, 2
#: What a shell expects of a program that was interrupted: 128 + SIGINT.
EXIT_INTERRUPTED = 130
#: What a terminal obeys and does not show: C0, DEL, C1 (ECMA-48), Unicode's line separators and changes of direction.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text for a terminal: what it would obey is written as Python writes it, e.g. ``\\x1b`` for escape."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Text on one line for people, whatever a name or a foreign library put into it."""
    return visible(" ".join(text.split()))


class UserError(Exception):
    """Unusable input or usage: one line that names the file or parameter, the rule, and what was found.

    Args:
        message: ``"<file or parameter>: <rule>, found <what>"``, without a full stop at its end.
        hint: What the user can do about it, one clause; printed behind the message.
    """

    exit_code = EXIT_UNUSABLE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """One line, whatever a foreign library put into the message."""
        return one_line(self.message if self.hint is None else f"{self.message}; {self.hint}")


class UnreadableFilm(UserError):
    """A file that is not a usable radiograph. It is left out and listed; the run goes on."""

    exit_code = EXIT_SOME_FAILED


class Interrupted(UserError):
    """Ctrl-C, where more can be said than that."""

    exit_code = EXIT_INTERRUPTED


class MissingExtra(UserError):
    """A command needs a part that the base installation does not bring."""


class Leak(UserError):
    """The same film, or films of one patient, on two sides of a split."""
