"""Some hundreds of the mutations of `fuzz_store.py`, which does thousands by hand."""

from __future__ import annotations

from fuzz_store import fuzz, make_stores


def test_no_mutation_of_a_store_gives_a_traceback_a_hang_or_a_flood(tmp_path):
    make_stores(tmp_path)
    found = fuzz(tmp_path, range(240), seed=0)
    assert found.faults == ()
    assert min(found.calls["told"], found.calls["read"]) > 100  # neither blind nor refusing all


def test_the_stores_are_whole_before_they_are_mutated(tmp_path):
    """What is told of a mutation is told of it alone."""
    make_stores(tmp_path)
    untouched = fuzz(tmp_path, range(30), seed=0, mutation=lambda _path, content, _rng: content)
    assert untouched.faults == ()
    assert set(untouched.calls) == {"read"}
