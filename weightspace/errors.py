"""What goes wrong by a user's hand: one line that says what was found, what was expected and what to do."""

from weightspace.escaping import one_line


class WeightspaceError(Exception):
    """Any mistake in the input that the library recognises; the command line prints it as one line.

    Whatever the input holds, the message is one line of fewer than 500 characters, none of which drives a terminal.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(value) if isinstance(value, str) else value for value in args))


class CheckpointError(WeightspaceError):
    """A checkpoint cannot be read, written or used beside another one."""


class SpecError(WeightspaceError):
    """A permutation spec cannot be derived, is not verified, or does not fit a network or checkpoint."""


class WeightspaceWarning(UserWarning):
    """Something that the library decided and a user may want otherwise; the command line prints it as one line."""
