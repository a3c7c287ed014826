"""Runs every RUN line of a Dockerfile in a clean Debian, where there is no container engine.

    sudo python3 docker/prove.py docker/Dockerfile.cpu --work /var/tmp/prove

1. debootstrap makes a minimal Debian 12 with Python 3.11, once: the stand-in for every FROM of
   `python:3.11.*-slim-bookworm`. `/usr/local` is a virtual environment there, so that `python` and
   `pip` lie where the image has them.
2. A stage starts from a copy of it. ENV, ARG, WORKDIR, USER and COPY (with .dockerignore) act as
   in a build; each RUN goes to `/bin/sh -c` in a chroot with the stage's environment and user.
3. The last stage's CMD runs as its user, which must not be root; that user, and one without a name,
   must be able to write to each VOLUME and to HOME; then each `--check` runs.
4. What this cannot prove is listed. Exit code 0 if all else held, 1 if not, 2 for a usage mistake.

Standard library only. Needs Linux, root, debootstrap, `unshare` and a Debian mirror. What it makes
stays under `--work`; a second proof takes the same Debian.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

CONTEXT = Path(__file__).resolve().parent.parent
BASE_IMAGE = re.compile(r"python:3\.11\.\d+-slim-bookworm")
BASE_PACKAGES = ("ca-certificates", "python3.11", "python3.11-dev", "python3.11-venv")
IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOBODY_WE_KNOW = (54321, 54321)
NOT_PROVEN = (
    "the base image itself: its packages, and its Python (the stand-in has Debian's 3.11)",
    "the build by an engine: layers, cache, size of the image, the digest of the base",
    "docker run: GPUs, --shm-size, volumes of the engine",
)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile."""

    name: str
    """Upper case, such as `RUN`."""
    text: str
    """What follows; lines that `\\` joins are one."""
    line: int


@dataclass
class Stage:
    """A stage as far as it has been run."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": IMAGE_PATH})
    args: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    volumes: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


class ProofError(Exception):
    """A line did not do what it should."""


# -- reading ---------------------------------------------------------------------------------------


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, in order; comments and empty lines are left out."""
    found: list[Instruction] = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            name, _, rest = " ".join(parts).partition(" ")
            found.append(Instruction(name.upper(), rest.strip(), start))
            parts = []
    if parts:
        raise ProofError(f"line {start}: the last line ends in a backslash")
    return found


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` as a build replaces them; unknown names become nothing."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: values.get(m[1] or m[2], ""), text)


def context_files(context: Path) -> Iterator[Path]:
    """Files of the build context, relative to it, that .dockerignore lets through."""
    ignore = context / ".dockerignore"
    rules = []
    for line in ignore.read_text().splitlines() if ignore.exists() else ():
        if line.strip() and not line.startswith("#"):
            pattern = line.strip()
            rules.append((pattern.startswith("!"), _ignore_rule(pattern.lstrip("!"))))
    for folder, names, files in os.walk(context):
        names[:] = sorted(set(names) - {".git", ".venv"})
        for name in sorted(files):
            path = (Path(folder) / name).relative_to(context)
            kept = True
            for keeps, rule in rules:
                if rule.fullmatch(path.as_posix()):
                    kept = keeps
            if kept:
                yield path


def _ignore_rule(pattern: str) -> re.Pattern[str]:
    """A line of .dockerignore; it matches a path or a folder above it."""
    marks = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    return re.compile("".join(marks.get(piece, re.escape(piece)) for piece in pieces) + "(?:/.*)?")


# -- running ---------------------------------------------------------------------------------------


class Proof:
    """Runs the stages of one Dockerfile below a folder."""

    def __init__(self, dockerfile: Path, options: argparse.Namespace) -> None:
        self.dockerfile, self.options = dockerfile, options
        self.stages: dict[str, Stage] = {}
        self.stage: Stage | None = None
        self.build_args = dict(pair.split("=", 1) for pair in options.build_arg)
        self.proven: list[str] = []
        self.apart: list[str] = [f"build argument changed: {pair}" for pair in options.build_arg]

    def run(self) -> None:
        """All instructions, then the checks of the last stage."""
        for item in instructions(self.dockerfile.read_text()):
            act = getattr(self, f"_do_{item.name.lower()}", None)
            if act is None:
                raise ProofError(f"line {item.line}: {item.name} is not known here")
            act(item)
        self.check_last_stage()

    # Each of these does one instruction.

    def _do_from(self, item: Instruction) -> None:
        image, *alias = item.text.split()
        if not BASE_IMAGE.fullmatch(image):
            raise ProofError(f"line {item.line}: no stand-in for {image}")
        name = alias[-1] if alias else "last"
        root = Path(self.options.work) / f"{self.dockerfile.name}.{name}"
        _remove(root)
        subprocess.run(
            ["cp", "--archive", "--reflink=auto", str(self.base()), str(root)], check=True
        )
        self.stage = self.stages[name] = Stage(root)
        say(f"FROM {image} ({name}): Debian 12, Python 3.11, in its place")

    def _do_arg(self, item: Instruction) -> None:
        name, _, default = item.text.partition("=")
        self.now.args[name] = self.build_args.get(name, default)

    def _do_env(self, item: Instruction) -> None:
        known = self.now.args | self.now.env
        pairs = [word.split("=", 1) for word in shlex.split(item.text)]
        self.now.env |= {name: substitute(value, known) for name, value in pairs}

    def _do_workdir(self, item: Instruction) -> None:
        self.now.folder = str(Path(self.now.folder) / item.text)
        self.inside(self.now.folder).mkdir(parents=True, exist_ok=True)

    def _do_user(self, item: Instruction) -> None:
        self.now.user = item.text

    def _do_volume(self, item: Instruction) -> None:
        self.now.volumes = json.loads(item.text)

    def _do_cmd(self, item: Instruction) -> None:
        self.now.command = json.loads(item.text)

    def _do_copy(self, item: Instruction) -> None:
        words = item.text.split()
        origin = next((w.split("=")[1] for w in words if w.startswith("--from=")), None)
        *sources, target = [word for word in words if not word.startswith("--")]
        place = self.inside(target)
        for source in sources:
            if origin:
                _copy(self.stages[origin].root / source.lstrip("/"), place, target)
                continue
            wanted = Path(source)
            found = [p for p in context_files(CONTEXT) if p == wanted or wanted in p.parents]
            if not found:
                raise ProofError(f"line {item.line}: COPY {source}: not in the build context")
            for path in found:
                to = place / (path.name if path == wanted else path.relative_to(wanted))
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CONTEXT / path, to)
        self.proven.append(f"line {item.line}: COPY {item.text}")

    def _do_run(self, item: Instruction) -> None:
        start = time.monotonic()
        self.call(item.text, env=self.now.args | self.now.env)
        self.proven.append(f"line {item.line}: RUN {item.text} ({time.monotonic() - start:.0f} s)")
        say(self.proven[-1])

    @property
    def now(self) -> Stage:
        """The stage that is being run."""
        if self.stage is None:
            raise ProofError("the first instruction must be FROM")
        return self.stage

    def inside(self, path: str) -> Path:
        """Where a path of the image lies on this machine."""
        return self.now.root / str(Path(self.now.folder) / path).lstrip("/")

    def check_last_stage(self) -> None:
        """The command, the user, what it may write, and the checks that were asked for."""
        stage = self.now
        if stage.user.split(":")[0] in ("root", "0"):
            raise ProofError("the last USER is root")
        checks = [shlex.join(stage.command), *self.options.check]
        checks.append(
            " && ".join(f'touch "{place}/x" && rm "{place}/x"' for place in stage.volumes)
        )
        checks.append('touch "$HOME/x" && rm "$HOME/x"')
        for command in filter(None, checks):
            for user in (stage.user, ":".join(map(str, NOBODY_WE_KNOW))):
                self.call(command, env=stage.env, user=user)
                self.proven.append(f"as {user}: {command}")
                say(self.proven[-1])

    def call(self, command: str, *, env: Mapping[str, str], user: str = "") -> None:
        """A shell line inside the stage, in namespaces of its own.

        Raises:
            ProofError: its exit code is not 0.
        """
        root, user = self.now.root, user or self.now.user
        mounts = ["mount -t proc proc $0/proc", "mount -t tmpfs -o mode=1777 tmpfs $0/dev/shm"]
        for path in self.options.share:
            place = root / path.lstrip("/")
            _make_place(Path(path), place)
            mounts.append(f"mount --bind -o ro {shlex.quote(path)} {shlex.quote(str(place))}")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        host = {name: os.environ[name] for name in self.options.host_env if name in os.environ}
        home = {"HOME": "/root"} if user == "root" else {}
        words = [f"{name}={value}" for name, value in (home | host | dict(env)).items()]
        spec = [] if user == "root" else [f"--userspec={user}", f"--groups={user.split(':')[-1]}"]
        line = f"cd {shlex.quote(self.now.folder)} && {command}"
        enter = ["chroot", *spec, str(root), "/usr/bin/env", "-i", *words, "/bin/sh", "-c", line]
        script = " && ".join([*mounts, f"exec {shlex.join(enter)}"])
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, str(root)],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        with (Path(self.options.work) / "log.txt").open("a") as log:
            log.write(f"\n$ {command}\n{done.stdout}")
        if done.returncode:
            raise ProofError(
                f"exit code {done.returncode} of `{command}` as {user}:\n{done.stdout[-4000:]}"
            )

    def base(self) -> Path:
        """The clean Debian, made if it is not there."""
        base = Path(self.options.work) / "debian-12"
        if not base.exists():
            say("debootstrap: a clean Debian 12")
            half = base.with_name("debian-12.half")
            _remove(half)
            mirror = [self.options.mirror] if self.options.mirror else []
            _quietly(["debootstrap", "--variant=minbase", "bookworm", str(half), *mirror])
            enter = ["chroot", str(half), "/usr/bin/env", "DEBIAN_FRONTEND=noninteractive"]
            _quietly([*enter, "apt-get", "update"])
            _quietly(
                [*enter, "apt-get", "install", "-y", "--no-install-recommends", *BASE_PACKAGES]
            )
            _quietly([*enter, "/usr/bin/python3.11", "-m", "venv", "/usr/local"])
            half.rename(base)
        return base


def _quietly(command: Sequence[str]) -> None:
    """Runs it; its output is told only if it fails."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise ProofError(f"exit code {done.returncode} of {command[0]}:\n{done.stdout[-4000:]}")


def _copy(source: Path, place: Path, target: str) -> None:
    """COPY --from: a folder's content into a folder, or a file."""
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--archive", f"{source}/.", str(place)], check=True)
    else:
        to = place / source.name if target.endswith("/") else place
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)


def _make_place(path: Path, place: Path) -> None:
    """Something to mount a file or folder on."""
    if path.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _remove(root: Path) -> None:
    """Nothing is mounted below: mounts live in the namespaces of `call`, which have ended."""
    if root.exists():
        shutil.rmtree(root)


# -- the command -----------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line, at once."""
    print(f"prove: {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prove one Dockerfile; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run every RUN line of a Dockerfile in a chroot.")
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--work", required=True, help="folder for the systems, some GB")
    parser.add_argument("--mirror", help="of Debian (default: the one of debootstrap)")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build"
    )
    parser.add_argument(
        "--share", action="append", default=[], metavar="PATH",
        help="path of this machine, seen read-only inside (a package index, pip's settings)",
    )  # fmt: skip
    parser.add_argument(
        "--host-env", action="append", default=[], metavar="NAME",
        help="variable of this machine that RUN lines see (PIP_FIND_LINKS, a proxy)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="append", default=[], metavar="COMMAND", help="must work at the end"
    )
    options = parser.parse_args(argv)
    if lacking := [name for name in ("debootstrap", "unshare") if not shutil.which(name)]:
        _refuse(f"needs {' and '.join(lacking)}: install the Debian package of that name")
    if os.geteuid() != 0:
        _refuse("needs root, for chroot: call it with sudo")
    Path(options.work).mkdir(parents=True, exist_ok=True)
    proof = Proof(options.dockerfile, options)
    try:
        proof.run()
    except (ProofError, OSError, subprocess.CalledProcessError) as error:
        say(f"FAILED: {error}")
        return 1
    say(f"{len(proof.proven)} steps of {options.dockerfile} held. Not proven:")
    for line in (*NOT_PROVEN, *proof.apart):
        say(f"  - {line}")
    return 0


def _refuse(reason: str) -> NoReturn:
    print(f"prove: error: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
