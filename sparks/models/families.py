"""Which `model_type`s of transformers are proved by the tests, and which are refused and why.

A type in neither list is tried: `anatomy_proof` takes it where its parts add up.
`tests/models/test_families.py` holds both lists to what transformers ships.
"""

from __future__ import annotations

CHECKED_ARCHITECTURES: tuple[str, ...] = (
    "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2",
)  # fmt: skip
"""`model_type`s whose scores the test suite compares with exact references."""

REFUSED: dict[str, tuple[str, ...]] = {
    "its layers are not alike, or some have no attention heads": (
        "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba",
    ),
}  # fmt: skip
"""Reason -> `model_type`s that are refused for it."""

WORKING = "architectures that work: README.md, `sparks check MODEL` asks for one"
"""The way out of a refusal."""


def why_refused(model_type: str) -> str | None:
    """Why an architecture is refused on purpose; None where it is not."""
    return next((reason for reason, types in REFUSED.items() if model_type in types), None)
