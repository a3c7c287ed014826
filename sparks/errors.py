"""The one error that sparks raises for what a user can mend."""


class SparksError(ValueError):
    """A rule was broken by what the caller gave: the message says what, the value, and the way out.

    It is a `ValueError`; the command line prints it as one line and exits with code 2.
    """

    def __str__(self) -> str:
        # A path may hold bytes that are not UTF-8: no output takes Python's signs for them.
        return super().__str__().encode("utf-8", "backslashreplace").decode()


def reason(error: object) -> str:
    """The text of an error on one line, for another message; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
