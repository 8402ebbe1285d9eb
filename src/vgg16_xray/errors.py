"""What a user did wrong, where, and how to mend it.

Every error that a user can cause is one of these. The command line prints it as one line and turns it into an exit
code; a server would turn it into an HTTP status.
"""

from __future__ import annotations

#: Exit codes of the command line: everything done; some of the inputs failed; wrong usage or unusable input.
EXIT_DONE, EXIT_SOME_FAILED, EXIT_UNUSABLE = 0, 1, 2


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
        text = self.message if self.hint is None else f"{self.message}; {self.hint}"
        return " ".join(text.split())


class UnreadableFilm(UserError):
    """A file that is not a usable radiograph. It is left out and listed; the run goes on."""

    exit_code = EXIT_SOME_FAILED


class MissingExtra(UserError):
    """A command needs a part that the base installation does not bring."""


class Leak(UserError):
    """The same film, or films of one patient, on two sides of a split."""
