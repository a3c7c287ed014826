"""Builds probes from problems: reference answers or one model's beginnings against another's.

1. Problems come from a file or a data set (`problems`), in their order, or from the rows that a
   trainer holds (`trained`).
2. Corrupted: an answer that the data rejects, else the beginning that `model`, the model before
   training, samples after the prompt. Clean: the beginning of the reference answer, or what
   `clean_model` samples, or the best rewarded of several answers (`rewards`).
3. A pair that no attribution could use (empty, equal, longer than the context) makes room for the
   next problem, and its reason is kept.
4. Control probes, where asked for, stand behind them in the group `control`: plain recall and
   copying (`control_probes.py`), or the user's own.

A model whose chat template opens `<think>` is recorded with that `<think>`, so that the text stands
for itself under any template; `ProbeSet.tokenize` drops it again where a template repeats it.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758: same problem, two sampled beginnings;
temperature 0.6, top-p 0.95. Torch, transformers and datasets are imported only while building.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from sparks.ground.errors import SparksError
from sparks.ground.files import check_writable
from sparks.models.families import context_of
from sparks.models.generation import (
    continuations,
    decode,
    generation_settings,
    stop_ids,
    text_after,
)
from sparks.probes.controls import Reading, control_probes
from sparks.probes.pairs import Message, PairEncoder, TokenPair, opened_thinking
from sparks.probes.probes import CONTROL_GROUP, Probe, ProbeSet
from sparks.probes.problems import ANSWER_KEYS, Problem, one_line, opened_problems
from sparks.probes.settings import NUM_PROBES, ProbeBuildingConfig

T = TypeVar("T")

# Passed-over problems after which building gives up, so that no hub data set is read to its end.
_PATIENCE = 100


@dataclass(frozen=True)
class BuiltProbes:
    """Probes, and the problems that gave none."""

    probes: ProbeSet
    skipped: tuple[str, ...]
    """One line, place and reason, for each problem that was passed over."""
    control_right: int | None = None
    """Built-in control probes whose next word the model gets right; None where there are none."""


def write_probes(config: ProbeBuildingConfig, *, progress: bool = True) -> BuiltProbes:
    """Build probes and write them to `config.output`, whole or not at all.

    Raises:
        SparksError: as `build_probes`, or the file cannot be written or belongs to a run (found out
            before the work).
    """
    check_writable(config.output)
    built = build_probes(config, progress=progress)
    built.probes.save(config.output)
    return built


def build_probes(config: ProbeBuildingConfig, *, progress: bool = True) -> BuiltProbes:
    """Build the probes that `config` asks for. The global random states are left as found.

    Raises:
        SparksError: data or a model cannot be loaded, a problem or a control probe breaks a rule,
            or too few give a usable pair.
    """
    # What can be read is read before any model is loaded: most mistakes show there.
    problems = None
    if config.data is not None:
        problems = opened_problems(
            config.data,
            subset=config.subset,
            split=config.split,
            system_prompt=config.system_prompt,
        )
    own = _own_controls(config)
    model = Sampler(config.model, config)
    clean = Sampler(config.clean_model, config) if problems and config.clean_model else None
    probes: list[Probe] = []
    skipped: list[str] = []
    if problems is not None:
        probes, skipped = from_problems(problems, model, config, clean=clean, progress=progress)
    right = None
    if own is not None:
        own.tokenize(model.tokenizer, **model.limits)
        probes += own
    elif config.control:
        controls = control_probes(
            model,
            config.control,
            kind=config.control_kind,
            seed=config.seed,
            max_suffix_tokens=config.max_suffix_tokens,
            system_prompt=config.system_prompt,
        )
        probes += controls.probes
        right = controls.right
    return BuiltProbes(ProbeSet(tuple(probes)), tuple(skipped), right)


def _own_controls(config: ProbeBuildingConfig) -> ProbeSet | None:
    """The first `config.control` probes of the user's file, as control probes."""
    if config.control_probes is None:
        return None
    found = ProbeSet.load(config.control_probes).probes[: config.control]
    if len(found) < config.control:
        raise SparksError(
            f"{config.control_probes}: {len(found)} probes, control asks for {config.control}"
        )
    return ProbeSet(
        tuple(
            replace(probe, id=f"control-{number}", group=CONTROL_GROUP)
            for number, probe in enumerate(found, start=1)
        )
    )


class Answers(Protocol):
    """Whoever gives problems their clean answers."""

    def require_template(self, problem: Problem) -> None:
        """Refuse a chat prompt that it has no template for."""
        ...

    def check_prompt(self, prompt: str | list[Message]) -> None:
        """Refuse a prompt that it cannot answer."""
        ...

    def answered(self, problems: Sequence[Problem], seed: str) -> tuple[list[Problem], list[str]]:
        """The problems with their answers, and a line for each that has none."""
        ...


def from_problems(
    problems: Iterator[Problem],
    corrupted: Sampler,
    config: ProbeBuildingConfig,
    *,
    clean: Answers | None = None,
    least: int | None = None,
    unread: Sequence[str] = (),
    progress: bool = True,
) -> tuple[list[Probe], list[str]]:
    """`config.count` probes, or what there are, and the reasons of the problems that gave none.

    Args:
        problems: in order.
        corrupted: the model before training.
        config: what is built, and how.
        clean: gives the clean answers; None takes those of the problems.
        least: probes that are enough where the problems give no more; None asks for all, or for one
            where `config` asks for no number.
        unread: grows by a line for what never became a problem, while `problems` are read.
        progress: show a bar.

    Raises:
        SparksError: too few problems give a usable pair, or one has no answer.
    """
    count = config.count or NUM_PROBES
    least = (config.count or 1) if least is None else least
    probes, skipped = collect(
        problems,
        lambda batch, start: _probes_of(batch, clean, corrupted, config, start),
        count=count,
        batch_size=config.batch_size,
        progress=progress,
    )
    skipped = [*unread, *skipped]
    if len(probes) < min(count, least):
        raise too_few(len(probes), count, config.data, skipped)
    return probes, skipped


def collect(
    problems: Iterator[Problem],
    make: Callable[[Sequence[Problem], int], tuple[list[T], list[str]]],
    *,
    count: int,
    batch_size: int,
    progress: bool,
) -> tuple[list[T], list[str]]:
    """What a number of problems give, batch by batch, until there are `count`.

    Args:
        problems: in order; those that give nothing make room for the next.
        make: of a batch and its number of first problem, what it gives, and a line for each problem
            that gives nothing.
        count: wanted; fewer come back where the problems end, or too many were passed over.
        batch_size: problems at a time.
        progress: show a bar.
    """
    found: list[T] = []
    skipped: list[str] = []
    with tqdm(total=count, desc="probes", unit="probe", disable=not progress) as bar:
        for start in itertools.count(step=batch_size):
            wanted = min(batch_size, count - len(found))
            batch = list(itertools.islice(problems, wanted))
            if not batch or len(skipped) >= max(_PATIENCE, count):
                break
            new, refused = make(batch, start)
            found += new
            skipped += refused
            bar.update(len(new))
    return found, skipped


def too_few(found: int, count: int, data: str | None, skipped: Sequence[str]) -> SparksError:
    """The error where `collect` gave fewer than were wanted."""
    reason = f", the first of them {skipped[0]}" if skipped else ""
    return SparksError(
        f"only {found} of {count} probes from {data}: {len(skipped)} problems were passed "
        f"over{reason}; give more or other problems, or a smaller count"
    )


def _probes_of(
    batch: Sequence[Problem],
    clean: Answers | None,
    corrupted: Sampler,
    config: ProbeBuildingConfig,
    start: int,
) -> tuple[list[Probe], list[str]]:
    """Probes of a batch of problems, and the reasons of those that gave none."""
    usable: list[Problem] = []
    skipped: list[str] = []
    probes: list[Probe] = []
    askers: list[Answers] = [corrupted] if clean is None else [corrupted, clean]
    for problem in batch:
        if problem.answer is None and clean is None:
            raise SparksError(
                f"{problem.place}: no reference answer: give one of {', '.join(ANSWER_KEYS)}, or "
                f"a clean model"
            )
        for asker in askers:
            asker.require_template(problem)
        try:
            for asker in askers:
                asker.check_prompt(problem.prompt)
            usable.append(problem)
        except SparksError as error:
            skipped.append(f"{problem.place}: {error}")
    if clean is None:
        usable = [replace(item, answer=corrupted.cut(item.answer or "")) for item in usable]
    else:
        usable, unanswered = clean.answered(usable, f"{config.seed} clean {start}")
        skipped += unanswered
    asked = [problem.prompt for problem in usable if problem.rejected is None]
    before = iter(corrupted.beginnings(asked, f"{config.seed} corrupted {start}"))
    for problem in usable:
        good, rejected = problem.answer or "", problem.rejected
        bad = next(before) if rejected is None else corrupted.cut(rejected)
        try:
            corrupted.encoder.pair(problem.prompt, good, bad)
        except SparksError as error:
            skipped.append(f"{problem.place}: {error}")
        else:
            group = config.group or problem.group
            probes.append(Probe(problem.prompt, clean=good, corrupted=bad, group=group))
    return probes, skipped


# -- sampling ----------------------------------------------------------------------------------


class Sampler:
    """A model with its tokenizer, for sampling beginnings.

    Args:
        name: folder or hub id; only for messages where the model is given.
        config: how it samples.
        given: model and tokenizer, where they are in memory already.

    Raises:
        SparksError: it cannot be loaded, or weights are missing.
    """

    def __init__(
        self, name: str, config: ProbeBuildingConfig, given: tuple[Any, Any] | None = None
    ) -> None:
        self._model, self.tokenizer = _loaded(name, config) if given is None else given
        self._name = name
        self._config = config
        self._context = context_of(self._model.config)
        self._settings = generation_settings(
            stop_ids(self._model, self.tokenizer),
            max_new_tokens=config.max_new_tokens,
            greedy=config.greedy,
            temperature=config.temperature,
            top_p=config.top_p,
        )
        self.limits: dict[str, Any] = {
            "max_suffix_tokens": config.max_suffix_tokens,
            "max_context": self._context,
        }
        """How long pairs may be."""
        self.encoder = PairEncoder(self.tokenizer, **self.limits)
        """Makes pairs with this model's tokenizer, under `limits`."""

    def require_template(self, problem: Problem) -> None:
        """Refuse a chat prompt where the tokenizer has no chat template.

        Raises:
            SparksError: it has none.
        """
        if not isinstance(problem.prompt, str) and not self.encoder.has_chat_template:
            raise SparksError(
                f"{problem.place}: chat messages, but the tokenizer of {self._name} has no chat "
                f"template: give the key `prompt` with text, or a model with a template"
            )

    def check_prompt(self, prompt: str | list[Message]) -> None:
        """Prove that the model can answer a prompt.

        Raises:
            SparksError: the chat template refuses it, it is empty, or no room is left behind it.
        """
        length, new = len(self.encoder.prompt_ids(prompt)), self._config.max_new_tokens
        if not length:
            raise SparksError("the prompt is empty in tokens")
        if self._context is not None and length + new > self._context:
            raise SparksError(
                f"a prompt of {length} tokens leaves no room for {new} in {self._context}"
            )

    def cut(self, answer: str) -> str:
        """The beginning of a reference answer, `max_new_tokens` tokens long."""
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) <= self._config.max_new_tokens:
            return answer
        kept = decode(self.tokenizer, ids[: self._config.max_new_tokens])
        return answer[: len(kept.rstrip("\ufffd"))]

    def answered(self, problems: Sequence[Problem], seed: str) -> tuple[list[Problem], list[str]]:
        """The problems with what the model writes as their answers."""
        written = self.beginnings([problem.prompt for problem in problems], seed)
        return [
            replace(problem, answer=answer)
            for problem, answer in zip(problems, written, strict=True)
        ], []

    def beginnings(self, prompts: Sequence[str | list[Message]], seed: str) -> list[str]:
        """What the model writes after each prompt: at most `max_new_tokens` tokens.

        Args:
            prompts: those that `check_prompt` let pass.
            seed: names the random draw; the global random state is left as found.

        Raises:
            SparksError: sampling fails (weights that are no numbers, no memory).
        """
        return list(map(self.text_behind, prompts, self.continued(prompts, seed)))

    def text_behind(self, prompt: str | list[Message], ids: list[int]) -> str:
        """The text of an answer, with the `<think>` that a prompt opens."""
        opened = opened_thinking(self.encoder.prompt_text(prompt))
        return opened + text_after(self.tokenizer, self.encoder.prompt_ids(prompt), ids)

    def continued(self, prompts: Sequence[str | list[Message]], seed: str) -> list[list[int]]:
        """As `beginnings`, as token ids."""
        rows = [self.encoder.prompt_ids(prompt) for prompt in prompts]
        try:
            found = continuations(self._model, rows, self._settings, seed)
        except RuntimeError as error:  # no number in the logits, no memory left
            raise SparksError(
                f"cannot sample from {self._name}: {one_line(error)}; check its weights, or "
                f"lower batch_size"
            ) from error
        return [answer.ids for answer in found]

    def readings(self, pairs: Sequence[TokenPair]) -> list[Reading]:
        """What the model predicts behind the continuations of each pair.

        Raises:
            SparksError: the model cannot be run (no memory).
        """
        rows = [pair.prefix + part for pair in pairs for part in (pair.clean, pair.corrupted)]
        size = self._config.batch_size
        behind = [
            logits
            for start in range(0, len(rows), size)
            for logits in self._last_logits(rows[start : start + size])
        ]
        return [_reading(*two) for two in zip(behind[::2], behind[1::2], strict=True)]

    def _last_logits(self, rows: list[list[int]]) -> Any:
        """Logits behind each row, [row vocabulary], float32."""
        import torch

        from sparks.models.anatomy import own_settings

        width = max(map(len, rows))
        device = self._model.device
        # Padded on the right: nothing before it sees the padding.
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        try:
            with torch.no_grad():
                logits = self._model(input_ids=ids, **own_settings(self._model)).logits
        except RuntimeError as error:  # no memory left
            raise SparksError(
                f"cannot run {self._name}: {one_line(error)}; lower batch_size"
            ) from error
        return logits[torch.arange(len(rows), device=device), last].float()


def _loaded(name: str, config: ProbeBuildingConfig) -> tuple[Any, Any]:
    """Model and tokenizer."""
    from sparks.models.loading import device_of, load_model, load_tokenizer, split_revision

    device, trust = device_of(config.device), config.trust_remote_code
    # Half precision is slow on a CPU, and its rounding depends on the machine.
    dtype = "float32" if device == "cpu" else "auto"
    place = split_revision(name)
    tokenizer = load_tokenizer(*place, trust_remote_code=trust)
    return load_model(*place, device=device, dtype=dtype, trust_remote_code=trust), tokenizer


def _reading(clean: Any, corrupted: Any) -> Reading:
    """Of logits, [vocabulary] each."""
    from torch.nn.functional import kl_div

    first, second = clean.log_softmax(-1), corrupted.log_softmax(-1)
    loss = kl_div(second, first, reduction="sum", log_target=True)
    return Reading(float(loss), int(first.argmax()), int(second.argmax()))
