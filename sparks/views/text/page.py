"""What the terminal's pages share: lines of a width, colours, numbers in words, harmless text.

Every name that a file may hold passes `inert` first, so that nothing in a run folder can move the
cursor, recolour the terminal or pretend to be another line.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence

from sparks.ground.errors import SparksError
from sparks.ground.plain_text import inert

NARROWEST = 40
_FALLBACK_WIDTH = 100
_STYLES = {
    "title": "1",
    "quiet": "2",
    "warning": "33",
    "born": "1;34",
    "revived": "36",
    "pruned": "31",
    "returned": "32",
    "silenced": "35",
}


class Page:
    """Lines of at most `width` characters, not counting colours.

    Args:
        width: characters a line; None takes the terminal's.
        color: with ANSI colours.

    Raises:
        SparksError: `width` is under 40.
    """

    def __init__(self, width: int | None, color: bool) -> None:
        if width is None:
            width = max(NARROWEST, shutil.get_terminal_size((_FALLBACK_WIDTH, 24)).columns)
        if width < NARROWEST:
            raise SparksError(f"width must be at least {NARROWEST} characters, got {width!r}")
        self.width, self.color = width, color
        self.lines: list[str] = []

    def styled(self, text: str, style: str) -> str:
        """`text` in a style of `_STYLES`."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.color and text else text

    def heading(self, text: str) -> None:
        """An empty line, and a title."""
        self.lines += [
            "",
            *(self.styled(line, "title") for line in textwrap.wrap(text, self.width)),
        ]

    def labelled(self, label: str, text: str, *, style: str = "title", indent: int = 0) -> None:
        """`label  text`, wrapped under the text; only the label takes the style."""
        margin = " " * indent
        first = f"{margin}{label}  "
        lines = textwrap.wrap(
            text, self.width, initial_indent=first, subsequent_indent=" " * len(first)
        )
        lines = lines or [first.rstrip()]
        lines[0] = margin + self.styled(label, style) + lines[0][len(margin) + len(label) :]
        self.lines += lines

    def grid(self, lines: Iterable[str]) -> None:
        """A header, quiet, and the rows below it."""
        for index, line in enumerate(lines):
            self.lines.append(self.styled(line, "quiet") if index == 0 else line)

    def table(
        self,
        columns: Mapping[str, Sequence[str]],
        given_up_first: Sequence[str] = (),
        *,
        named: bool = True,
    ) -> Collection[str]:
        """Header and rows; the least important columns go until the rest fits.

        Args:
            columns: cells by header.
            given_up_first: headers that may go, the first of them first.
            named: the first column holds names, to the left, and is cut last; else all are numbers.

        Returns:
            Headers that are shown.
        """
        sizes = column_sizes(columns, self.width, given_up_first)
        first, *rest = sizes
        if named:
            room = self.width - sum(sizes[name] + 2 for name in rest) - 2
            sizes[first] = max(4, min(sizes[first], room))
        lines = []
        for cells in ([*sizes], *zip(*(columns[name] for name in sizes), strict=True)):
            lead = inert(cells[0], sizes[first]).ljust(sizes[first]) if named else cells[0]
            pairs = zip([lead, *cells[1:]], sizes.values(), strict=True)
            lines.append("".join(f"  {cell:>{size}}" for cell, size in pairs))
        self.grid(lines)
        return sizes


def column_sizes(
    columns: Mapping[str, Sequence[str]], width: int, given_up_first: Sequence[str]
) -> dict[str, int]:
    """Characters of each column, two before it; the first of `given_up_first` go until all fit."""
    sizes = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    for name in given_up_first:
        if sum(sizes.values()) + 2 * len(sizes) <= width:
            break
        sizes.pop(name, None)
    return sizes
