"""The exceptions that users are meant to see."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user gave is wrong: a file, a column, a row, a configuration key.

    The message is one line that says what was given, where, and what was expected. The command line prints it
    without a traceback and exits with code 2; nothing is left half-written.
    """


class Diverged(UserError, FloatingPointError):
    """A loss is no longer finite; the message names the setting to change."""
