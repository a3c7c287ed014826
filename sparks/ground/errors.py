"""The one error that sparks raises for what a user can mend, and text that does no harm.

Paths, names and what other libraries say can hold anything, and end up on a terminal. So what does
not print goes out as escapes: control characters, line ends, turns of the writing direction.
"""


class SparksError(ValueError):
    """A rule was broken by what the caller gave: the message says what, the value, and the way out.

    It is a `ValueError`; the command line prints it as one line and exits with code 2. Its text is
    one line that cannot steer a terminal, wherever it is shown.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def printable(text: object) -> str:
    r"""The text with all that does not print as escapes, such as `\x1b`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def one_line(text: object) -> str:
    """As `printable`, with a blank for each stretch of blanks and line ends."""
    return printable(" ".join(str(text).split()))


def reason(error: object) -> str:
    """The text of an error on one line, for another message; its class where it has none."""
    return one_line(error) or type(error).__name__
