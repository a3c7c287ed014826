"""Packages that an extra of `thinking-sparks` installs, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from sparks.ground.errors import SparksError


def import_optional(name: str, *, users: str, extra: str) -> Any:
    """A module of an optional package, imported now.

    Args:
        name: full name of the module.
        users: what needs it, in the plural, for the message.
        extra: of `thinking-sparks` that installs it.

    Raises:
        SparksError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SparksError(
            f"{users} need {name.partition('.')[0]}, which cannot be imported ({error}): "
            f"`pip install 'thinking-sparks[{extra}]'`"
        ) from error
