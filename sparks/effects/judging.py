"""What is judged, and how: the metric of each problem, and the one place where a claim is made.

A metric is named `pass@1`, `pass@4`, `success@4`; from its intervals and p-values come words:

1. Several sets are tested together: p-values are corrected as Holm (1979, Scandinavian Journal of
   Statistics 6:65) does, so that any false claim among all rows of a study has chance alpha.
2. `beyond matched random heads`: the corrected p that the set is one more random draw is at most
   alpha, and its own effect differs from 0 on the same side.
3. `no more than matched random heads`: the interval of the contrast holds nothing that would
   matter on that side. What would matter is a share of the intact model's metric (`margin`): a
   model that solves little leaves nothing to tell, and a margin in points would call that equal.
4. `undecided` otherwise, and where random heads alone take nearly all of the metric: then no set
   can take more, whatever it carries.

No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from sparks.effects.settings import ALPHA
from sparks.evaluation.pass_at_k import check_k, pass_values
from sparks.evaluation.results import default_ks
from sparks.ground.errors import SparksError
from sparks.stats.intervals import Interval

Verdict = Literal["beyond matched random heads", "no more than matched random heads", "undecided"]
BEYOND: Verdict = "beyond matched random heads"
NO_MORE: Verdict = "no more than matched random heads"
UNDECIDED: Verdict = "undecided"

_TAKEN = 0.9
"""Random heads that take this share of the metric leave no room to take more."""
_NAME = re.compile(r"(pass|success)@(\d+)\Z")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """pass@k or success@k (`evaluation.pass_at_k`); larger is better."""

    kind: str
    """`pass` or `success`."""
    k: int

    @classmethod
    def named(cls, name: str) -> Metric:
        """The metric of a name such as `pass@1`.

        Raises:
            SparksError: there is no such metric.
        """
        match = _NAME.match(name)
        if match is None or int(match[2]) < 1:
            raise SparksError(f"metric must be pass@K or success@K, as in pass@1, got {name!r}")
        return cls(kind=match[1], k=int(match[2]))

    def __str__(self) -> str:
        return f"{self.kind}@{self.k}"

    def values(
        self, correct: Bool[np.ndarray, "problems samples"]
    ) -> Float[np.ndarray, " problems"]:
        """Of each problem, in [0, 1].

        Raises:
            SparksError: k is more than there are samples.
        """
        samples = correct.shape[1]
        self.check(samples)
        if self.kind == "success":
            return np.asarray(correct[:, : self.k].any(axis=1), dtype=np.float64)
        return pass_values(correct.sum(axis=1), samples, self.k)

    def grain(self, samples: int) -> float:
        """A problem's metric is a whole number of these."""
        return 1.0 if self.kind == "success" else 1 / math.comb(samples, self.k)

    def check(self, samples: int) -> None:
        """Refuse a k that so many samples cannot tell.

        Raises:
            SparksError: it is larger.
        """
        check_k(self.k, samples)


def beside(metric: Metric, samples: int) -> tuple[Metric, ...]:
    """The other metrics that the samples tell: powers of two and all samples, each k once."""
    found = [Metric(kind="pass", k=k) for k in default_ks(samples)]
    found += [Metric(kind="success", k=k) for k in default_ks(samples) if 1 < k < samples]
    return tuple(other for other in found if other != metric)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, and why it is not a firmer one."""

    verdict: Verdict
    reason: str
    """Empty but for `undecided`."""


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Corrected p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return tuple(corrected)


def judge(
    *,
    intact: float,
    effect: Interval,
    control: Interval,
    contrast: Interval,
    p_holm: float,
    alpha: float = ALPHA,
    margin: float,
) -> Judgement:
    """What may be said of a set beside its matched random heads.

    Args:
        intact: metric of the intact model; larger is better.
        effect: Delta(H), metric(intact) - metric(ablated).
        control: mean Delta over draws of matched random heads.
        contrast: `effect` - `control`.
        p_holm: of the contrast, corrected over all rows.
        alpha: chance of a false claim.
        margin: share of `intact` that would matter.
    """
    takes = contrast.value > 0 and effect.low > 0
    raises = contrast.value < 0 and effect.high < 0
    if p_holm <= alpha and (takes or raises):
        return Judgement(verdict=BEYOND, reason="")
    matters = margin * abs(intact)
    takes_no_more = contrast.high < matters and effect.low > -matters
    raises_no_more = contrast.low > -matters and effect.high < matters
    if intact > 0 and control.value >= _TAKEN * intact:
        reason = "random heads alone take nearly all: ablate fewer heads, or scale them less"
    elif takes_no_more or raises_no_more:
        return Judgement(verdict=NO_MORE, reason="")
    elif intact <= 0:
        reason = "the intact model reaches nothing that could be taken"
    else:
        reason = _why(effect, contrast, p_holm, alpha, matters)
    return Judgement(verdict=UNDECIDED, reason=reason)


def _why(effect: Interval, contrast: Interval, p_holm: float, alpha: float, matters: float) -> str:
    if p_holm <= alpha:
        return "it differs from random heads, but not from no ablation"
    if contrast.low > 0 or contrast.high < 0:
        return (
            f"it differs from the mean of random heads, but no more than single draws may (p "
            f"{p_holm:.2g}): more draws"
        )
    return (
        f"differences up to {100 * max(-contrast.low, contrast.high):.2g} points are open, and "
        f"{100 * matters:.2g} would matter: more problems, samples or draws"
    )
