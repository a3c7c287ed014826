"""Recipes: every YAML loads into its own classes, headers are true, mistakes are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from places import ROOT

RECIPES = ROOT / "recipes"
sys.path.insert(0, str(RECIPES))

import distill  # noqa: E402
import grpo  # noqa: E402
import sft  # noqa: E402
from common import data, rewards, steps  # noqa: E402
from common.settings import RecipeArguments, RecipeParser, run  # noqa: E402

from sparks import SparksError  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # TRL's own default: it names the old setting itself.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
)

SCRIPTS = {"sft": sft, "distill": distill, "grpo": grpo}
CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
SIZES = ("tiny", "smollm2-135m", "qwen2.5-math-1.5b", "llama-3.2-1b")


def header(path: Path) -> str:
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def launch(path: Path) -> re.Match[str]:
    """The launch command in a YAML's header: accelerate's file, the script, its own file."""
    found = re.search(
        r"^  accelerate launch --config_file (\S+) recipes/(\w+)\.py --config (\S+)$",
        header(path),
        flags=re.MULTILINE,
    )
    assert found, f"{path.name} does not open with its launch command"
    return found


def load(path: Path, *arguments: str):
    """Settings of a YAML by class name, as its script reads them (bf16 needs no GPU here)."""
    kinds = SCRIPTS[launch(path)[2]].KINDS
    found = RecipeParser(kinds).read(["--config", str(path), "--use_cpu", "true", *arguments])
    return {type(item).__name__: item for item in found}


# -- YAMLs -----------------------------------------------------------------------------------------


def test_there_is_a_yaml_for_every_regime_and_size():
    names = {path.stem for path in CONFIGS}
    assert {f"{regime}-{size}" for regime in SCRIPTS for size in SIZES} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_yaml_opens_with_what_one_has_to_know(path):
    accelerate, script, own = launch(path).groups()
    assert (ROOT / accelerate).is_file()
    assert (RECIPES / f"{script}.py").is_file()
    assert ROOT / own == path
    text = header(path)
    for told in (r"hardware: +\S", r"time: +.*\d", r"memory: +.*\d"):
        assert re.search(f"^{told}", text, flags=re.MULTILINE), told
    command = launch(path)[0].strip()
    assert f"resume: {command} --resume_from_checkpoint true" in text.splitlines()
    assert "@" not in text
    if not path.stem.endswith(("tiny", "smollm2-135m")):
        assert text.count("estimate, not run") >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_yaml_loads_into_its_own_classes(path):
    found = load(path)
    values = {name: value for item in found.values() for name, value in vars(item).items()}
    for name, value in yaml.safe_load(path.read_text("utf-8")).items():
        held = values[name]
        if name not in ("use_cpu", "report_to"):
            assert held == value or float(held) == float(value), name
    assert found["SparksArguments"].snapshot_config()
    assert values["output_dir"].startswith("runs/")
    assert values["sparks_probes"]
    assert values["probe_data"]


def test_what_does_not_fit_a_yaml_is_refused(tmp_path):
    good = RECIPES / "configs" / "sft-tiny.yaml"
    for line, match in (
        ("num_generations: 16", "num_generations"),  # a setting of another trainer
        ("learning_rte: 1.0e-5", "learning_rte"),
        ("max_steps: many", "many"),
        ("save_strategy: sometimes", "sometimes"),
        ("- no mapping", "settings: "),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(good.read_text("utf-8") + line + "\n", "utf-8")
        with pytest.raises(SparksError, match=match):
            RecipeParser(sft.KINDS).read(["--config", str(bad)])


PAPER = {
    "sft-qwen2.5-math-1.5b": (4e-5, 5, 0.03, None),
    "sft-llama-3.2-1b": (4e-5, 5, 0.03, None),
    "grpo-qwen2.5-math-1.5b": (1e-6, 3, 0.1, 16),
    "grpo-gsm8k-qwen2.5-math-1.5b": (5e-6, 1, 0.1, 16),
    "grpo-llama-3.2-1b": (2e-7, 3, 0.1, 16),
}
"""Learning rate, epochs, warm-up and generations of the paper's A.4."""


@pytest.mark.parametrize("name", PAPER)
def test_paper_sizes_have_the_papers_settings(name):
    found = load(RECIPES / "configs" / f"{name}.yaml")
    recipe = found["RecipeArguments"]
    training = found.get("SFTConfig") or found["GRPOConfig"]
    rate, epochs, warmup, generations = PAPER[name]
    assert (training.learning_rate, training.num_train_epochs) == (rate, epochs)
    assert (training.warmup_steps, training.bf16) == (warmup, True)
    assert (training.save_steps, training.save_strategy) == (100, "steps")
    assert getattr(training, "num_generations", None) == generations
    if generations:
        assert training.reward_weights == [1.0, 1.0]
    gsm8k = ("openai/gsm8k", "main")
    openr1 = ("open-r1/OpenR1-Math-220k", "default")
    expected = gsm8k if "gsm8k" in name else openr1
    assert (recipe.dataset_name, recipe.dataset_config) == expected
    asked = data.system_prompt(recipe)
    assert "<think>\n...\n</think>\n<answer>\n...\n</answer>" in asked


@pytest.mark.parametrize("size", SIZES[:2])
def test_the_three_regimes_of_a_size_share_base_and_probes(size):
    shared = set()
    for regime in SCRIPTS:
        found = load(RECIPES / "configs" / f"{regime}-{size}.yaml")
        recipe, sparks = found["RecipeArguments"], found["SparksArguments"]
        probes = (sparks.sparks_probes, sparks.snapshot_config(), recipe.probe_data)
        shared.add((found["ModelConfig"].model_name_or_path, recipe.dataset_name, *probes))
    assert len(shared) == 1


# -- accelerate ------------------------------------------------------------------------------------

KINDS = {
    "cpu": (DistributedType.NO, 1),
    "cpu-2": (DistributedType.MULTI_GPU, 2),
    "gpu": (DistributedType.NO, 1),
    "gpus": (DistributedType.MULTI_GPU, 8),
    "fsdp2": (DistributedType.FSDP, 8),
    "zero2": (DistributedType.DEEPSPEED, 8),
    "zero3": (DistributedType.DEEPSPEED, 8),
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_its_files(name, tmp_path):
    path = RECIPES / "accelerate" / f"{name}.yaml"
    found = load_config_from_file(str(path))
    assert (found.distributed_type, found.num_processes) == KINDS[name]
    assert found.use_cpu is name.startswith("cpu")
    if name == "fsdp2":
        assert found.fsdp_config["fsdp_version"] == 2
        assert found.fsdp_config["fsdp_reshard_after_forward"] is True
    if name.startswith("zero"):
        assert found.deepspeed_config["zero_stage"] == int(name[-1])
    bad = tmp_path / path.name
    bad.write_text(path.read_text("utf-8") + "number_of_processes: 2\n", "utf-8")
    with pytest.raises(ValueError, match="number_of_processes"):
        load_config_from_file(str(bad))


def test_every_file_of_accelerate_is_tested():
    assert {path.stem for path in (RECIPES / "accelerate").glob("*.yaml")} == set(KINDS)


# -- data ------------------------------------------------------------------------------------------


def hub_folder(name: str, subset: str, rows: list[dict[str, object]]) -> None:
    """A folder with the columns of a hub data set: `load_dataset` reads it under the same name."""
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n  - split: train\n"
        f"    path: rows.jsonl\n---\n",
        "utf-8",
    )


def settings(path: Path, *arguments: str) -> RecipeArguments:
    return load(path, *arguments)["RecipeArguments"]


def test_rows_of_openr1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {
        "problem": "What is half of one?",
        "solution": "One divided by two.",
        "answer": "\\frac{1}{2}",
        "problem_type": "Algebra",
        "uuid": "7",
        "generations": ["<think>\nOkay.\n</think>\nIt is \\boxed{\\frac{1}{2}}."],
        "messages": [
            {"role": "user", "content": "What is half of one?"},
            {"role": "assistant", "content": "<think>\nOkay.\n</think>\nIt is one half."},
        ],
    }
    hub_folder("open-r1/OpenR1-Math-220k", "default", [row, row])
    recipe = settings(RECIPES / "configs" / "sft-qwen2.5-math-1.5b.yaml")
    (first, _) = data.load_rows(recipe, "prompt", "completion", "solution")
    assert first["prompt"] == [
        {"role": "system", "content": data.SYSTEM_PROMPT},
        {"role": "user", "content": "What is half of one?"},
    ]
    assert first["completion"] == [row["messages"][1]]
    assert first["solution"] == "\\frac{1}{2}"
    one = settings(RECIPES / "configs" / "sft-qwen2.5-math-1.5b.yaml", "--max_train_rows", "1")
    assert len(data.load_rows(one, "prompt")) == 1


def test_rows_of_gsm8k(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"question": "2 and 3?", "answer": "2 + 3 = <<2+3=5>>5\nSo five.\n#### 5"}
    hub_folder("openai/gsm8k", "main", [row])
    recipe = settings(RECIPES / "configs" / "grpo-gsm8k-qwen2.5-math-1.5b.yaml")
    (first,) = data.load_rows(recipe, "prompt", "completion", "solution")
    assert first["prompt"][1] == {"role": "user", "content": "2 and 3?"}
    assert first["solution"] == "5"
    text = first["completion"][0]["content"]
    assert text.startswith("<think>\n2 + 3 = ")
    assert rewards.is_right(text, "5")
    assert rewards.format_reward([first["completion"]]) == [1.0]


def test_other_rows():
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2?"}]
    done = [{"role": "assistant", "content": "<answer>2</answer>"}]
    own = data.example({"prompt": chat, "completion": done}, None)
    assert own == {"prompt": chat, "completion": done, "solution": "2"}
    assert data.example({"prompt": chat}, "Hm.")["prompt"][0]["content"] == "Hm."
    text = data.example({"prompt": "2?", "completion": "2"}, None)
    assert text["prompt"] == [{"role": "user", "content": "2?"}]
    assert text["completion"] == [{"role": "assistant", "content": "2"}]
    asked = data.example({"problem": "2?", "answer": 2}, None)
    assert (asked["solution"], asked["completion"]) == ("2", None)


# -- mistakes --------------------------------------------------------------------------------------


def refused(monkeypatch, capsys, recipe: str, *arguments: object) -> str:
    """What a recipe says on standard error when it stops with exit code 2: one line."""
    path = RECIPES / "configs" / f"{recipe}-tiny.yaml"
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--config", str(path), *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(SCRIPTS[recipe].main)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(recipe)]
    (line,) = lines
    assert line.startswith(f"{recipe}.py: error: ")
    return line


FORM = "<think>\nHm.\n</think>\n<answer>\n{}\n</answer>"


@pytest.fixture
def sums(tmp_path, monkeypatch) -> Path:
    """A file of one row; the working folder is empty otherwise."""
    monkeypatch.chdir(tmp_path)
    row = {
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "completion": [{"role": "assistant", "content": FORM.format(2)}],
    }
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    return path


def test_missing_things_are_told_in_one_line(sums, monkeypatch, capsys):
    def line(recipe: str, *arguments: object) -> str:
        return refused(monkeypatch, capsys, recipe, *arguments)

    assert "no data: nowhere.jsonl does not exist" in line("sft", "--dataset_name", "nowhere.jsonl")
    assert "cannot load data set 'no/where'" in line("grpo", "--dataset_name", "no/where")
    with_data = ("--dataset_name", sums)
    gone = ("--model_name_or_path", "gone")
    assert "cannot load checkpoint gone" in line("sft", *with_data, *gone)
    assert "mode must be on_policy or off_policy, got 'both'" in line("distill", "--mode", "both")
    assert "cannot load checkpoint .cache/tiny/base" in line("distill", *with_data)
    assert "--tpyo" in line("sft", "--tpyo", "1")
    assert "--max-steps: invalid int value: 'many' (help: --help)" in line(
        "sft", "--max_steps", "many"
    )
    sums.write_text('{"text": "1"}\n', "utf-8")
    assert "row 1 gives no prompt: it has text" in line("sft", *with_data)
    sums.write_text('{"prompt": "1"}\n', "utf-8")
    assert "row 1 gives no solution: it has prompt" in line("grpo", *with_data)
    assert sorted(item.name for item in Path().iterdir()) == ["sums.jsonl"]


def test_settings_that_name_nothing_are_told(tmp_path):
    with pytest.raises(SparksError, match="--config needs a YAML file"):
        RecipeParser(sft.KINDS).read(["--config"])
    with pytest.raises(SparksError, match="no data: give a JSONL file or a hub data set"):
        sft.main(["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"])
    with pytest.raises(SparksError, match="no teacher: give a folder or hub id with --teacher"):
        distill.main(["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"])


def test_the_last_whole_checkpoint_is_taken(tmp_path):
    def asked(value: str) -> str | None:
        training = load(
            RECIPES / "configs" / "sft-tiny.yaml",
            *("--output_dir", str(tmp_path), "--resume_from_checkpoint", value),
        )["SFTConfig"]
        return steps.checkpoint_to_resume(training)

    assert asked("true") is None
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"half'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-old").mkdir()
    assert asked("true") == str(tmp_path / "checkpoint-10")
    assert asked(str(tmp_path / "checkpoint-2")) == str(tmp_path / "checkpoint-2")
    assert asked("false") is None
    with pytest.raises(SparksError, match=r"cannot resume: .*checkpoint-14 is no checkpoint"):
        asked(str(tmp_path / "checkpoint-14"))


@pytest.mark.parametrize(
    ("state", "settings", "expected"),
    [
        ({"global_step": 100, "max_steps": 100}, {"max_steps": 100}, True),
        ({"global_step": 100, "max_steps": 100}, {"max_steps": 150}, False),
        ({"global_step": 90, "max_steps": 100}, {"max_steps": 100}, False),
        ({"global_step": 9, "max_steps": 9, "num_train_epochs": 3}, {"num_train_epochs": 3}, True),
        ({"global_step": 9, "max_steps": 9, "num_train_epochs": 3}, {"num_train_epochs": 4}, False),
        ({}, {"max_steps": -1}, False),
    ],
)
def test_a_run_is_at_its_end_or_not(tmp_path, state, settings, expected):
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    training = SimpleNamespace(**({"max_steps": -1, "num_train_epochs": 3} | settings))
    assert steps._is_at_its_end(tmp_path, training) is expected


def test_probes_that_cannot_be_built_are_told(tmp_path):
    found = load(
        RECIPES / "configs" / "sft-tiny.yaml",
        *("--sparks_probes", str(tmp_path / "probes.jsonl"), "--probe_data", str(tmp_path / "no")),
    )
    recipe, training = found["RecipeArguments"], found["SFTConfig"]
    model, sparks = found["ModelConfig"], found["SparksArguments"]
    with pytest.raises(SparksError, match=r"cannot load data set '.*no'"):
        steps.watch(recipe, training, model, sparks)
    recipe.probe_data = None
    with pytest.raises(SparksError, match=r"probes.jsonl does not exist, and no --probe_data"):
        steps.watch(recipe, training, model, sparks)
    (tmp_path / "probes.jsonl").write_text("{}\n")
    with pytest.raises(SparksError, match=r"probes\.jsonl:1"):
        steps.watch(recipe, training, model, sparks)
    sparks.sparks_probes = None
    with pytest.raises(SparksError, match="no probes: name their file with --sparks_probes"):
        steps.watch(recipe, training, model, sparks)


def test_the_comparison_says_what_it_does_and_what_it_does_not_know():
    def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(RECIPES / "compare.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    told = compare("--help")
    assert told.returncode == 0
    assert told.stdout.startswith("usage: bash recipes/compare.sh [--size tiny|smollm2-135m]")
    wrong = compare("--size", "huge")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "compare.sh: --size must be tiny or smollm2-135m, got 'huge'\n"


def test_models_of_one_process_are_whole_under_zero_3():
    """A stand-in for accelerate's plugin: DeepSpeed needs GPUs."""
    seen = []

    class Plugin:
        @contextmanager
        def zero3_init_context_manager(self, enable):
            seen.append(enable)
            yield

    with steps.whole_models(SimpleNamespace(deepspeed_plugin=Plugin())):
        assert seen == [False]
    with steps.whole_models(SimpleNamespace(deepspeed_plugin=None)):
        assert seen == [False]
