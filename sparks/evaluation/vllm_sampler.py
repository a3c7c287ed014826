"""Samples answers with vLLM, from a model's folder or hub id.

1. One `LLM` for the run, started when the first sample is missing; as long a context as the longest
   prompt and its answer need.
2. `LLM.generate` takes token ids and one `SamplingParams` a row: our settings in full, no defaults
   of the model's, and a seed of its own for every sample, so that batches do not matter to it.
3. vLLM batches by itself: it is given many rows at a time, but not all, so that samples are saved
   as they come.

vLLM runs no hooks: an intervention is exported first (`sparks ablate`). This project's tests have
no vLLM and no GPU: they run against a stand-in that follows the documented interface
(https://docs.vllm.ai/en/latest/api/vllm/, `LLM`, `SamplingParams`, `RequestOutput`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparks.evaluation.prompts import encode_prompts
from sparks.evaluation.records import Task
from sparks.evaluation.results import Evaluation
from sparks.evaluation.run import evaluate_with
from sparks.evaluation.samplers import suggested_by
from sparks.evaluation.settings import SUGGESTED, EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.models.families import context_of
from sparks.models.generation import Continuation, stop_ids, until_stop
from sparks.probes.problems import one_line

_ROWS = 512
_BLOCK = 1 << 16
_BLOCKS = 16


def is_installed() -> bool:
    """The package can be found."""
    return importlib.util.find_spec("vllm") is not None


def evaluate_with_vllm(
    name: str,
    revision: str | None,
    tokenizer: Any,
    task: Task,
    config: EvaluationConfig,
    *,
    trust_remote_code: bool = False,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """As `run.evaluate`, for a model that vLLM loads.

    Args:
        name: a folder, or a hub id.
        revision: of a hub id.
        tokenizer: of the model.
        task: of `load_task`.
        config: how to sample.
        trust_remote_code: run Python code that comes with a model.
        output: file of samples, as in `run.evaluate`.
        progress: show a bar.

    Raises:
        SparksError: as `VllmSampler` and `run.evaluate`.
    """
    sampler = VllmSampler(name, revision, tokenizer, trust_remote_code=trust_remote_code)
    problems = task.problems[: config.limit]
    prompts = encode_prompts(tokenizer, problems, config, model=name, context=sampler.context)
    sampler.longest = max(len(prompt.ids) for prompt in prompts) + config.max_new_tokens
    return evaluate_with(sampler, tokenizer, task, config, output=output, progress=progress)


class VllmSampler:
    """A model in vLLM's own process.

    Args:
        name: a folder, or a hub id.
        revision: of a hub id.
        tokenizer: of the model.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        SparksError: vLLM is not installed, or the model's settings cannot be read.
    """

    backend = "vllm"

    def __init__(
        self, name: str, revision: str | None, tokenizer: Any, *, trust_remote_code: bool = False
    ) -> None:
        if not is_installed():
            raise SparksError(
                "vllm is not installed: `pip install vllm` (it needs a GPU), or sample with "
                "--backend transformers"
            )
        self.model, self._revision, self._trust = name, revision, trust_remote_code
        self.longest: int | None = None
        """Tokens of the longest prompt with its answer; None for the model's whole context."""
        config, generation = _configs(name, revision, trust_remote_code)
        self._stops = stop_ids(_Named(generation), tokenizer)
        self._engine: Any = None
        self.fingerprint = files_fingerprint(name, getattr(config, "_commit_hash", None))
        self.context = context_of(config)
        self.suggested: Mapping[str, Any] = suggested_by(generation)

    def batch_size(self, config: EvaluationConfig) -> int:
        """Many more than the setting, which is for sampling without vLLM."""
        return max(_ROWS, config.batch_size)

    def sample(
        self, rows: Sequence[list[int]], first: int, config: EvaluationConfig
    ) -> list[Continuation]:
        """A continuation of each row.

        Raises:
            SparksError: vLLM does not start, or fails.
        """
        vllm: Any = importlib.import_module("vllm")
        if self._engine is None:
            self._engine = self._started(vllm)
        settings = [
            vllm.SamplingParams(**self._settings(config, first + index))
            for index in range(len(rows))
        ]
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        try:
            found = self._engine.generate(prompts, settings, use_tqdm=False)
        except Exception as error:  # an engine fails in many classes
            raise SparksError(
                f"cannot sample from {self.model} with vllm: {one_line(error)}; sample with "
                f"--backend transformers"
            ) from error
        return [self._continuation(request.outputs[0]) for request in found]

    def _started(self, vllm: Any) -> Any:
        try:
            return vllm.LLM(
                model=self.model,
                revision=self._revision,
                trust_remote_code=self._trust,
                max_model_len=self.longest,
                generation_config="vllm",
                seed=0,
            )
        except Exception as error:  # an engine fails in many classes
            raise SparksError(
                f"vllm cannot run {self.model}: {one_line(error)}; sample with --backend "
                f"transformers"
            ) from error

    def _settings(self, config: EvaluationConfig, number: int) -> dict[str, Any]:
        name = f"{config.seed} evaluate {number}"
        sampling: dict[str, Any] = {"temperature": 0.0}
        if not config.greedy:
            sampling = {item: getattr(config, item) for item in SUGGESTED}
            sampling["top_k"] = config.top_k or 0
        return {
            **sampling,
            "n": 1,
            "max_tokens": config.max_new_tokens,
            "seed": int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]),
            "stop_token_ids": list(self._stops),
            "detokenize": False,
        }

    def _continuation(self, output: Any) -> Continuation:
        """The stop token may stand at the end or not."""
        found = until_stop(list(output.token_ids), self._stops)
        return Continuation(found.ids, ended=found.ended or output.finish_reason == "stop")


class _Named:
    """What `stop_ids` reads of a model."""

    def __init__(self, generation_config: Any) -> None:
        self.generation_config = generation_config


def _configs(name: str, revision: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Config and generation config of a model; the latter None where it ships none."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # files and the hub fail in many classes
        raise SparksError(
            f"cannot load the config of {name}: {one_line(error)}; give a folder of a Hugging Face "
            f"model, or check the id and the network"
        ) from error
    try:
        given: dict[str, Any] = {} if revision is None else {"revision": revision}
        return config, GenerationConfig.from_pretrained(name, **given)
    except OSError:  # there is none
        return config, None


def files_fingerprint(name: str, commit: str | None) -> str:
    """Names the weights of a model that is not in memory.

    A folder: sha256 (hex) of names, sizes and evenly spaced blocks of its weight files. A hub id:
    the id with its commit.
    """
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{commit or 'unknown'}"
    digest = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("config.json")]
    for path in sorted(files):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for block in _blocks(path):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterable[bytes]:
    stride = max(_BLOCK, path.stat().st_size // _BLOCKS)
    with path.open("rb") as file:
        for start in range(0, path.stat().st_size, stride):
            file.seek(start)
            yield file.read(_BLOCK)
