"""`sparks evaluate`: sampled answers to a task, checked; with heads off, where asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import (
    add_loading,
    command_parser,
    model_of,
    print_frame,
    quiet_libraries,
    say,
    tokenizer_of,
    wants_color,
)
from sparks.cli.options.evaluation import add_check, add_sampling, sampling
from sparks.cli.options.heads import (
    HEADS_HELP,
    add_heads,
    chosen_heads,
    for_model,
    in_words,
    intervention,
)
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.effects.choose_heads import HeadSet
    from sparks.evaluation.records import Task
    from sparks.evaluation.results import Evaluation
    from sparks.evaluation.settings import EvaluationConfig


def add_evaluate(commands: Any) -> None:
    """`sparks evaluate`."""
    command = command_parser(
        commands,
        "evaluate",
        _run_evaluate,
        help="sample answers to the problems of a task and check them: pass@k and success@k",
        epilog=f"""examples:
  sparks evaluate Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --samples 8 --output evaluations/
      every sample goes to evaluations/gsm8k.jsonl; the same command goes on after a kill
  sparks evaluate MODEL --task gym:chain_sum --limit 50 --output sums.jsonl
      reasoning-gym makes the problems: no hub needed
  sparks evaluate MODEL --task problems.jsonl --check exact --k 1 4 --samples 4 --output own.jsonl
      your problems: `problem` and `answer` a line
  sparks evaluate Qwen/Qwen3-8B --task aime24 --thinking on --max-new-tokens 16384 --output on.jsonl
      temperature, top-p and top-k as the model suggests for thinking
  sparks evaluate MODEL --task gsm8k --heads L5H1,L7H2 --output off.jsonl
      the same with two heads off; --scale 1.3 turns them up
tasks: gsm8k, math-500, aime24, aime25, amc, gpqa-diamond, triviaqa; gym:NAME; a JSONL file
{HEADS_HELP}
What heads do is told by a comparison with random heads that match them: sparks effects.""",
    )
    command.add_argument(
        "model", metavar="MODEL", help="checkpoint, a folder or hub id as owner/name@revision"
    )
    command.add_argument("--task", required=True, help="name of a task, gym:NAME, or a JSONL file")
    command.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="file of samples to write or to go on with (.jsonl), or a folder for TASK.jsonl",
    )
    add_check(command)
    command.add_argument(
        "--k", nargs="+", type=int, metavar="N", help="which k of pass@k and success@k to print"
    )
    command.add_argument(
        "--format",
        choices=("text", "csv", "json"),
        default="text",
        help="text, csv or json (default: text)",
    )
    add_loading(command)
    add_sampling(command, backend=True)
    add_heads(command, needed=False)


def _run_evaluate(arguments: argparse.Namespace) -> int:
    from sparks.evaluation.pass_at_k import check_k
    from sparks.evaluation.tasks import load_task

    config = sampling(arguments)
    for k in arguments.k or ():
        check_k(k, config.samples)
    heads = chosen_heads(arguments)
    quiet_libraries()
    task = load_task(arguments.task, limit=config.limit, seed=config.seed, check=arguments.check)
    output = output_file(arguments.output, task.name)
    found = _evaluated(arguments, config, task, heads, output)
    _show(found, arguments)
    say(f"{len(found.problems)} problems in {output}", aside=True)
    return 0


def output_file(given: str, task: str) -> Path:
    """The file of samples: as given, or named by the task in a folder."""
    path = Path(given)
    if path.suffix == ".jsonl" and not path.is_dir():
        return path
    return path / f"{task.replace(':', '-')}.jsonl"


def _evaluated(
    arguments: argparse.Namespace,
    config: EvaluationConfig,
    task: Task,
    heads: HeadSet | None,
    output: Path,
) -> Evaluation:
    from sparks.evaluation.run import evaluate

    backend = _backend(arguments, config, heads)
    tokenizer = tokenizer_of(arguments)
    if backend == "vllm":
        from sparks.evaluation.vllm_sampler import evaluate_with_vllm
        from sparks.models.loading import split_revision

        return evaluate_with_vllm(
            *split_revision(arguments.model),
            tokenizer,
            task,
            config,
            trust_remote_code=arguments.trust_remote_code,
            output=output,
        )
    model = model_of(arguments)
    if heads is None:
        return evaluate(model, tokenizer, task, config, output=output)
    heads = for_model(arguments, heads, model)
    words = f"{heads} {in_words(arguments)}"
    with intervention(arguments, heads, model, tokenizer):
        found = evaluate(model, tokenizer, task, config, output=output, intervention=words)
    say(f"heads: {heads.origin}", aside=True)
    return found


def _backend(arguments: argparse.Namespace, config: EvaluationConfig, heads: HeadSet | None) -> str:
    """vLLM where it is asked for, or where it is installed and can.

    Raises:
        SparksError: it is asked for and cannot.
    """
    from sparks.evaluation.vllm_sampler import is_installed
    from sparks.models.loading import device_of

    if config.backend == "vllm" and heads is not None:
        raise SparksError(
            "vllm cannot intervene on heads: write the checkpoint with `sparks ablate MODEL "
            "--heads ... --output DIR` and evaluate DIR, or leave out --backend vllm"
        )
    if config.backend != "auto":
        return config.backend
    adapter = (Path(arguments.model) / "adapter_config.json").exists()
    can = heads is None and not adapter and device_of(arguments.device).startswith("cuda")
    return "vllm" if can and is_installed() else "transformers"


def _show(found: Evaluation, arguments: argparse.Namespace) -> None:
    from sparks.views.text.evaluation import render

    if arguments.format == "text":
        print(render(found, arguments.k, color=wants_color()))
    else:
        print_frame(found.metrics(arguments.k), arguments.format)
