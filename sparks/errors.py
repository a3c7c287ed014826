"""The one error that sparks raises for what a user can mend."""


class SparksError(ValueError):
    """A rule was broken by what the caller gave: the message says what, the value, and the way out.

    It is a `ValueError`; the command line prints it as one line and exits with code 2.
    """
