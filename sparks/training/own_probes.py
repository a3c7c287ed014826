"""Probes from what is trained, for a callback that was given none.

1. The trainer's rows say what is trained (`probes.trained`). Rows that hold prompts alone need the
   trainer's teacher, or its reward functions (`probes.rewards`).
2. Process 0 builds them with the model before training; all processes get the same. Of a sharded
   model a whole copy does the writing, as for snapshots.
3. A seed of its own draws rows and answers, so that two runs on the same data have the same probes.

Training is left untouched, as by a snapshot (`models.guard`). A reward function that keeps a state
of its own is the exception: it is called here as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError, printable
from sparks.models import processes
from sparks.models.adapters import can_be_disabled, without_adapter
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.models.sharding import whole
from sparks.probes.building import Answers, Sampler, from_problems
from sparks.probes.controls import control_probes
from sparks.probes.pairs import TokenPair
from sparks.probes.probes import Probe, ProbeSet
from sparks.probes.rewards import NUM_ANSWERS, Rewarded
from sparks.probes.settings import ProbeBuildingConfig
from sparks.probes.trained import IdsToText, TrainingData
from sparks.training.evaluator import alone

LEAST = 8
"""Probes that are enough where the data give no more."""
_WAY_OUT = "give probes, as in SparksCallback('probes.jsonl'): `sparks probes` builds them"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user says of the probes that are built."""

    num_probes: int
    num_controls: int
    reference: str | None = None
    reward_funcs: Sequence[Callable[..., Any]] = ()
    reward_weights: Sequence[float] | None = None
    teacher: nn.Module | None = None


class ProbesFromTraining:
    """Builds probes from the rows of a trainer.

    Args:
        wishes: of the user, and what was taken from the trainer.
        dataset: the training data, as the trainer reads them.
        args: of the trainer.
        state: of the trainer, for reward functions.
        say: takes a line for the user.
        progress: show a bar.
    """

    def __init__(
        self,
        wishes: Wishes,
        dataset: Any,
        args: Any,
        state: Any,
        *,
        say: Callable[[str], None],
        progress: bool,
    ) -> None:
        self._wishes, self._dataset, self._args, self._state = wishes, dataset, args, state
        self._say, self._progress = say, progress

    def build(
        self, model: nn.Module, tokenizer: Any, config: SnapshotConfig, folder: Path, *, step: int
    ) -> ProbeSet:
        """Probes for the model before training; every process makes this call and gets the same.

        Args:
            model: in training; left as found.
            tokenizer: of the model.
            config: of the snapshots that will be taken.
            folder: where the probes will lie, for the message.
            step: of the model. After step 0 an adapter is left out, where there is one.

        Raises:
            SparksError: the data cannot be read, or too few rows give a usable pair.
        """
        copy, teacher = alone(whole(model), model), self._wishes.teacher
        if teacher is not None:
            teacher = _unwrapped(teacher)
            teacher = alone(whole(teacher), teacher)

        def work() -> ProbeSet:
            start = time.perf_counter()
            before: AbstractContextManager[Any] = nullcontext()
            if step and can_be_disabled(copy):
                before = without_adapter(copy)
            beside = nullcontext() if teacher is None else undisturbed(teacher)
            with undisturbed(copy), beside, before:
                take_apart(copy)  # a model that cannot be measured is told before it writes
                found, told = self._build(copy, teacher, tokenizer, config)
            self._say(
                f"{told} in {printable(folder / 'probes.jsonl')}, "
                f"{time.perf_counter() - start:.1f} s"
            )
            return found

        return processes.first_does(work)

    def _build(
        self, model: nn.Module, teacher: nn.Module | None, tokenizer: Any, config: SnapshotConfig
    ) -> tuple[ProbeSet, str]:
        """The probes, and how many of what they are."""
        wishes = self._wishes
        length = config.max_suffix_tokens
        settings = ProbeBuildingConfig(
            model="the model in training", output="", data="the training data",
            count=wishes.num_probes, control=wishes.num_controls, greedy=True,
            max_new_tokens=length, max_suffix_tokens=length,
        )  # fmt: skip
        data = self._data(tokenizer, settings)
        sampler = Sampler(settings.model, settings, (model, tokenizer))
        clean, what, cost = self._clean(data, sampler, model, teacher, settings)
        self._say(
            f"building {wishes.num_probes} probes from the training data ({what}): {cost}; each "
            f"snapshot then takes {wishes.num_probes + wishes.num_controls} x {config.first_points}"
            f" passes forward and back"
        )
        try:
            probes, skipped = from_problems(
                data.problems(), sampler, settings,
                clean=clean, least=LEAST, unread=data.skipped, progress=self._progress,
            )  # fmt: skip
        except SparksError as error:
            raise SparksError(f"{error}; or {_WAY_OUT}") from error
        controls, words = self._controls(sampler, settings)
        of = f" of {wishes.num_probes}" if len(probes) < wishes.num_probes else ""
        over = f", {len(skipped)} rows passed over" if skipped else ""
        told = f"{len(probes)}{of} probes from the training data ({what}{over}), {words},"
        return ProbeSet((*probes, *controls)), told

    def _data(self, tokenizer: Any, settings: ProbeBuildingConfig) -> TrainingData:
        try:
            return TrainingData(
                self._dataset, tokenizer,
                length=settings.max_new_tokens, seed=settings.seed,
                answer_key=self._wishes.reference,
            )  # fmt: skip
        except SparksError as error:
            raise SparksError(f"no probes from the training data: {error}; {_WAY_OUT}") from error

    def _clean(
        self,
        data: TrainingData,
        sampler: Sampler,
        model: nn.Module,
        teacher: nn.Module | None,
        settings: ProbeBuildingConfig,
    ) -> tuple[Answers | None, str, str]:
        """Who gives the clean answers, what stands against what, and what that costs."""
        wishes, count, length = self._wishes, settings.count, settings.max_new_tokens
        if teacher is not None:
            other = Sampler("the teacher", settings, (teacher, sampler.tokenizer))
            cost = f"{count} x {length} tokens are written by each of them"
            return other, "what the teacher writes against what the model writes", cost
        if data.words:
            cost = f"at most {count} x {length} tokens are written"
            return None, data.words, "nothing is written" if data.is_compared else cost
        if wishes.reward_funcs:
            longest = getattr(self._args, "max_completion_length", None) or 256
            whole_answers = Sampler(
                settings.model,
                ProbeBuildingConfig(
                    model=settings.model, output="", data=settings.data,
                    max_new_tokens=max(longest, length), max_suffix_tokens=length,
                    temperature=getattr(self._args, "temperature", 1.0), top_p=1.0,
                ),
                (model, sampler.tokenizer),
            )  # fmt: skip
            rewarded = Rewarded(
                whole_answers, wishes.reward_funcs,
                weights=wishes.reward_weights, cut=sampler.cut, state=self._state,
            )  # fmt: skip
            cost = f"{count} x {NUM_ANSWERS} answers of at most {longest} tokens are written"
            return rewarded, "an answer with more against one with less reward", cost
        raise SparksError(
            f"no probes from the training data: its rows hold prompts alone "
            f"({', '.join(data.columns)}). Give the trainer its callback with "
            f"SparksCallback.attach(trainer), which knows its rewards and its teacher, or name the "
            f"column of a reference answer with reference, or {_WAY_OUT}"
        )

    def _controls(
        self, sampler: Sampler, settings: ProbeBuildingConfig
    ) -> tuple[Sequence[Probe], str]:
        """Control probes, and how many; a model that has too few of them goes without."""
        if not settings.control:
            return (), "no control probes"
        try:
            found = control_probes(
                sampler, settings.control,
                seed=settings.seed, max_suffix_tokens=settings.max_suffix_tokens,
            )  # fmt: skip
        except SparksError as error:
            return (), f"no control probes ({error})"
        return found.probes, f"{settings.control} control probes"


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside an engine of DeepSpeed's, or DDP."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


class ProbesOfPairs:
    """Token pairs, as probes in text.

    Args:
        pairs: at least one.
    """

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self._pairs = pairs

    def build(
        self, model: nn.Module, tokenizer: Any, config: SnapshotConfig, folder: Path, *, step: int
    ) -> ProbeSet:
        """The pairs as text that the tokenizer reads back as these very tokens.

        Raises:
            SparksError: no text does so.
        """
        texts = IdsToText(tokenizer)
        found = []
        for number, pair in enumerate(self._pairs, start=1):
            try:
                found.append(texts.probe(pair))
            except SparksError as error:
                raise SparksError(f"pair {number}: {error}") from error
        return ProbeSet(tuple(found))
