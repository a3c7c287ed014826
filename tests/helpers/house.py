"""The house, measured from its imports: rooms, arrows between them, floors, circles, listings.

    python tests/helpers/house.py             # of this checkout
    python tests/helpers/house.py OTHER       # of another one: the folder that holds `sparks/`

A room is a folder or a file directly in `sparks/`. An arrow is a pair of rooms of which the first
imports from the second. A room stands one floor above the highest room that it imports from; rooms
of one circle share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path


def name_of(path: Path, package: Path) -> str:
    """Dotted name below the package; the package itself is `""`."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(package: Path) -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below it."""
    paths = sorted(package.rglob("*.py"))
    return {name_of(path, package): ast.parse(path.read_text("utf-8")) for path in paths}


def is_type_checking(node: ast.AST) -> bool:
    """A block that only type checkers read."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(tree: ast.AST, known: Mapping[str, object]) -> set[str]:
    """Full names of what a module imports when it runs, inside functions too."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix("sparks.") in known else str(node.module))
        elif not is_type_checking(node):
            found |= imports_of(node, known)
    return found


def inner_imports(name: str, modules: Mapping[str, ast.Module]) -> set[str]:
    """Modules of the package that a module of it imports."""
    found = imports_of(modules[name], modules)
    ours = {item for item in found if item.split(".")[0] == "sparks"}
    return {item.removeprefix("sparks").removeprefix(".") for item in ours}


def rooms_of(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Each room, and the rooms that it imports from."""
    rooms: dict[str, set[str]] = {}
    for name in modules:
        room = name.split(".")[0]
        others = {item.split(".")[0] for item in inner_imports(name, modules)}
        rooms.setdefault(room, set()).update(others - {room, ""})
    del rooms[""]
    return rooms


def circles_of(rooms: Mapping[str, set[str]]) -> list[set[str]]:
    """Rooms that reach each other, each circle once."""
    reach = {room: set(others) for room, others in rooms.items()}
    for middle in rooms:
        for room in rooms:
            if middle in reach[room]:
                reach[room] |= reach[middle]
    circles = [
        frozenset(a for a in rooms if a in reach[room] and room in reach[a]) for room in rooms
    ]
    return [set(circle) for circle in sorted(set(circles), key=sorted) if circle]


def floors_of(rooms: Mapping[str, set[str]]) -> dict[str, int]:
    """Floor of each room, from 0."""
    circle = {room: members for members in circles_of(rooms) for room in members}
    floors: dict[str, int] = {}
    for floor in count():
        left = [room for room in rooms if room not in floors]
        if not left:
            return floors
        ready = [
            room
            for room in left
            if all(other in floors or other in circle.get(room, ()) for other in rooms[room])
            and all(
                other in floors or other in circle[room]
                for member in circle.get(room, ())
                for other in rooms[member]
            )
        ]
        floors |= dict.fromkeys(ready, floor)
    return floors


def listings(package: Path) -> Iterator[tuple[int, str]]:
    """How many entries each folder lists."""
    for folder in [package, *sorted(path for path in package.rglob("*") if path.is_dir())]:
        entries = [item for item in folder.iterdir() if item.name != "__pycache__"]
        if entries and folder.name != "__pycache__":
            yield len(entries), str(folder.relative_to(package.parent))


def lines_of(package: Path) -> int:
    """Lines of the package's source: Python, and the page's scripts and styles."""
    kinds = {".py", ".js", ".css", ".html"}
    files = [path for path in package.rglob("*") if path.suffix in kinds]
    return sum(path.read_text("utf-8").count("\n") for path in files)


def main(root: Path) -> None:
    """Print it."""
    package = root / "sparks"
    modules = modules_of(package)
    rooms = rooms_of(modules)
    floors = floors_of(rooms)
    for floor in range(max(floors.values()), -1, -1):
        for room in sorted(room for room in rooms if floors[room] == floor):
            print(f"{floor:3}  {room:14} <- {', '.join(sorted(rooms[room])) or '-'}")
    circles = circles_of(rooms)
    print(
        f"\n{len(modules)} modules, {len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows, "
        f"{max(floors.values()) + 1} floors, {len(circles)} circles"
        + "".join(f" ({', '.join(sorted(circle))})" for circle in circles)
    )
    longest = sorted(listings(package), reverse=True)[:3]
    print("longest listings: " + ", ".join(f"{name} {size}" for size, name in longest))
    print(f"{lines_of(package)} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
