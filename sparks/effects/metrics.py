"""The metric of each problem by name: `pass@1`, `pass@4`, `success@4`. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sparks.evaluation.pass_at_k import check_k, pass_values
from sparks.evaluation.results import default_ks
from sparks.ground.errors import SparksError

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
