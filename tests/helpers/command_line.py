"""Calls the command line in this process and checks how it refuses."""

from __future__ import annotations

import re
from pathlib import Path

from sparks.cli import main


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def call(*arguments: object) -> int:
    """`main`; argparse's own exit is an exit code too."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


def error_line(capsys) -> str:
    """The one line on standard error, once the bars have wiped themselves away."""
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = [line.rpartition("\r")[2] for line in captured.err.split("\n")]
    assert shown[-1] == ""
    (line,) = shown[:-1]
    assert line.startswith("sparks"), line
    return line


def assert_refused(capsys, folder: Path, *arguments: object, match: str) -> None:
    """Exit code 2, one line that says why, and nothing written below `folder`."""
    before = listing(folder)
    assert call(*arguments) == 2
    line = error_line(capsys)
    assert re.search(match, line), line
    assert "Traceback" not in line
    assert listing(folder) == before
