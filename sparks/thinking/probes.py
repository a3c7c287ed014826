"""Probes of one model under both modes of its chat template: thinking on and off.

For each problem the model samples a beginning under each mode, from that mode's own prompt. Probes
"on" have the on-beginning as clean and the off-beginning as corrupted; probes "off" have the roles
swapped. Both have the same problems and ids, so that heads are compared probe by probe.

What a beginning holds is a choice, `contrast`; both keep a circuit from being about the marker
(`<think>` against `<think></think>`) alone:

- `beginnings`, as the paper's prompts: the prompt is what both rendered prompts share, a beginning
  the mode's marker and the model's own words. The mode is in what is swapped, as it has to be for
  heads that carry the mode. L is measured at the last position, `max_suffix_tokens` tokens of OWN
  WORDS behind the longer marker (the snapshot's own setting is that much longer). A problem whose
  own words are equal under both modes, so that the marker is all that differs, is passed over.
  (With `positions` all, the marker's positions count too.)
- `words`: each mode keeps its own whole prompt with its marker, the same in clean and corrupted;
  only own words are swapped. No circuit can be about the marker, but each is read behind its own
  prompt. The only choice where the modes differ before the answer (SmolLM3 tells the mode in the
  system message): there the beginnings would hold the whole question, at shifted positions.
- `auto` (the default): `beginnings` where the modes are late (`modes`), else `words`.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758, section 6; prompts as in its A.2. It
does not say how it treats the marker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparks.ground.errors import SparksError
from sparks.models.loading import load_tokenizer
from sparks.probes.building import Sampler, collect, too_few
from sparks.probes.pairs import Message, PairEncoder, opened_thinking
from sparks.probes.probes import Probe, ProbeSet
from sparks.probes.problems import Problem, opened_problems
from sparks.probes.thinking_switch import (
    MODES,
    Mode,
    Switch,
    as_plain_text,
    find_switch,
    shared_text,
    split_marker,
)
from sparks.thinking.settings import Contrast, ThinkConfig

_UNCUT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ThinkProbes:
    """Probes of both modes, the same ids in the same order."""

    on: ProbeSet
    off: ProbeSet
    switch: str
    """Name of the template's switch."""
    contrast: Contrast
    """`beginnings` or `words`."""
    marker_tokens: int
    """Tokens of the longest marker among what is swapped; 0 for `words`."""
    skipped: tuple[str, ...]
    """One line, place and reason, for each problem that was passed over."""

    def of(self, mode: Mode) -> ProbeSet:
        """The probes whose clean beginnings are of this mode."""
        return self.on if mode == "on" else self.off


@dataclass(frozen=True)
class _Answer:
    """What a mode gives for a problem."""

    prompt: str
    """Rendered, as plain text."""
    written: str
    """By the model."""


def build_think_probes(
    model: str,
    config: ThinkConfig,
    *,
    max_suffix_tokens: int,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
) -> ThinkProbes:
    """Sample a beginning of each problem under both modes. Random states are left as found.

    Args:
        model: folder or hub id of a chat model whose template has a thinking mode.
        config: what is built, and how.
        max_suffix_tokens: tokens of own words that the pairs hold.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        trust_remote_code: run Python code that comes with a model.
        progress: show a bar.

    Raises:
        SparksError: data or model cannot be loaded, the template has no thinking mode, a problem is
            no chat, too few problems give a usable pair, or all beginnings are equal.
    """
    if config.data is None:
        raise SparksError("no problems: say with --data which problems the model shall begin")
    problems = opened_problems(
        config.data, subset=config.subset, split=config.split, system_prompt=config.system_prompt
    )
    first = next(problems)
    _require_messages(first)
    # A template is read in a moment: most mistakes show before a model is loaded.
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    switch, contrast = _switch(model, tokenizer, config)
    sampling = config.sampling(
        model,
        device,
        max_suffix_tokens=max_suffix_tokens,
        trust_remote_code=trust_remote_code,
    )
    sampler = Sampler(model, sampling)
    builder = _Builder(sampler, config, switch, contrast, max_suffix_tokens)
    return builder.build(itertools.chain([first], problems), progress)


def _switch(model: str, tokenizer: Any, config: ThinkConfig) -> tuple[Switch, Contrast]:
    """How the template is told the mode, and what the beginnings of its modes hold."""
    switch = find_switch(tokenizer, model, config.switch)
    late = switch.is_late(tokenizer)
    if config.contrast == "beginnings" and not late:
        raise SparksError(
            f"contrast must be words for {model}, got beginnings: its template tells the mode "
            f"before the answer, so that beginnings would hold the whole question"
        )
    if config.contrast == "auto":
        return switch, "beginnings" if late else "words"
    return switch, config.contrast


def _require_messages(problem: Problem) -> None:
    if isinstance(problem.prompt, str):
        raise SparksError(
            f"{problem.place}: the prompt is text, which has no thinking mode: name the key "
            f"`problem`, or give messages"
        )


class _Builder:
    """A model that answers problems under both modes."""

    def __init__(
        self,
        sampler: Sampler,
        config: ThinkConfig,
        switch: Switch,
        contrast: Contrast,
        max_suffix_tokens: int,
    ) -> None:
        self.sampler, self.config, self.own_words = sampler, config, max_suffix_tokens
        self.switch, self.contrast = switch, contrast
        self.uncut = PairEncoder(sampler.tokenizer, max_suffix_tokens=_UNCUT)
        self.marker_tokens = 0
        self.equal = 0
        """Problems whose own words are the same under both modes."""

    def build(self, problems: Iterator[Problem], progress: bool) -> ThinkProbes:
        """Probes until there are `count`."""
        found, skipped = collect(
            problems,
            self._pairs,
            count=self.config.count,
            batch_size=self.config.batch_size,
            progress=progress,
        )
        self._require(len(found), skipped)
        on, off = zip(*found, strict=True)
        return ThinkProbes(
            on=ProbeSet(on),
            off=ProbeSet(off),
            switch=self.switch.name,
            contrast=self.contrast,
            marker_tokens=self.marker_tokens,
            skipped=tuple(skipped),
        )

    def _require(self, found: int, skipped: Sequence[str]) -> None:
        if found == self.config.count:
            return
        if not found and self.equal and self.equal == len(skipped):
            raise SparksError(
                f"the model writes the same words with thinking on and off, in all {self.equal} "
                f"problems: its modes do not differ in how an answer begins; sample more of it "
                f"(--max-suffix-tokens), or take a model that was trained with the mode"
            )
        raise too_few(found, self.config.count, self.config.data, skipped)

    def _pairs(
        self, batch: Sequence[Problem], start: int
    ) -> tuple[list[tuple[Probe, Probe]], list[str]]:
        """Probes on and off of the problems that give them, and the reasons of the others."""
        usable: list[Problem] = []
        skipped: list[str] = []
        prompts: dict[Mode, list[str]] = {mode: [] for mode in MODES}
        for problem in batch:
            _require_messages(problem)
            try:
                rendered = [self._prompt(problem, mode) for mode in MODES]
            except SparksError as error:
                skipped.append(f"{problem.place}: {error}")
                continue
            usable.append(problem)
            for mode, text in zip(MODES, rendered, strict=True):
                prompts[mode].append(text)
        answers = [self._answers(prompts[mode], f"{mode} {start}") for mode in MODES]
        pairs = []
        for problem, on, off in zip(usable, *answers, strict=True):
            try:
                pairs.append(self._pair(problem, on, off))
            except SparksError as error:
                skipped.append(f"{problem.place}: {error}")
        return pairs, skipped

    def _prompt(self, problem: Problem, mode: Mode) -> str:
        """Rendered, and found fit to be answered."""
        tokenizer = self.sampler.tokenizer
        assert not isinstance(problem.prompt, str)  # _require_messages has seen to it
        rendered = self.switch.render(tokenizer, problem.prompt, mode)
        text = as_plain_text(self.uncut, tokenizer, rendered)
        self.sampler.check_prompt(text)
        return text

    def _answers(self, prompts: Sequence[str], draw: str) -> list[_Answer]:
        given: list[str | list[Message]] = list(prompts)
        written = self.sampler.beginnings(given, f"{self.config.seed} think {draw}")
        # The sampler repeats the `<think>` that a prompt ends with, which is not the model's.
        return [
            _Answer(prompt, text.removeprefix(opened_thinking(prompt)))
            for prompt, text in zip(prompts, written, strict=True)
        ]

    def _pair(self, problem: Problem, on: _Answer, off: _Answer) -> tuple[Probe, Probe]:
        (on_mark, on_words), (off_mark, off_words) = map(split_marker, (on.written, off.written))
        for mode, words in zip(MODES, (on_words, off_words), strict=True):
            if not words.strip():
                raise SparksError(f"with thinking {mode} the model writes no words of its own")
        on_prompt, off_prompt = on.prompt + on_mark, off.prompt + off_mark
        self._refuse_equal((on_prompt, off_prompt), on_words, off_words)
        if self.contrast == "words":
            pairs = ((on_prompt, on_words, off_words), (off_prompt, off_words, on_words))
        else:
            shared = shared_text(on.prompt, off.prompt)
            first, second = on_prompt[len(shared) :], off_prompt[len(shared) :]
            self._measure_marker(shared, (first, second), (first + on_words, second + off_words))
            pairs = (
                (shared, first + on_words, second + off_words),
                (shared, second + off_words, first + on_words),
            )
        for pair in pairs:
            self.uncut.pair(*pair)
        one, other = (Probe(*pair, group=problem.group) for pair in pairs)
        return one, other

    def _refuse_equal(self, prompts: Sequence[str], on: str, off: str) -> None:
        """The own words must differ within what is measured, behind either prompt."""
        for prompt in prompts:
            one, other = (self.uncut.prompt_ids(prompt, words) for words in (on, off))
            end = min(len(self.uncut.prompt_ids(prompt)) + self.own_words, len(one), len(other))
            if one[:end] == other[:end]:
                self.equal += 1
                raise SparksError("the model writes the same words with thinking on and off")

    def _measure_marker(
        self, shared: str, markers: tuple[str, str], beginnings: tuple[str, str]
    ) -> None:
        """Tokens of the longer marker behind the tokens that both beginnings share with the prompt.

        Raises:
            SparksError: one beginning ends within the other's marker: own words meet none.
        """
        prefix = len(self.uncut.pair(shared, *beginnings).prefix)
        longest = max(len(self.uncut.prompt_ids(shared, text)) for text in markers) - prefix
        shortest = min(len(self.uncut.prompt_ids(shared, text)) for text in beginnings) - prefix
        if shortest <= longest:
            raise SparksError("one beginning is shorter than the other mode's marker")
        self.marker_tokens = max(self.marker_tokens, longest)
