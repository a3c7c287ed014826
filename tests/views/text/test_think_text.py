"""The page of `sparks think`, and the test that tells heads apart, where the answer is known."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from think_planted import PROBES, pairs, planted_model, probes

from sparks.attribution.take_snapshot import take_snapshot
from sparks.cli import build_parser
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.pairs import TokenPair
from sparks.thinking.comparison import ThinkComparison
from sparks.thinking.record import ThinkRecord
from sparks.thinking.states import (
    ONLY_OFF,
    ONLY_ON,
    SHARED,
    UNDECIDED,
    Measured,
    by_paper,
    exchanged_modes,
    judged,
    num_exclusive,
)
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.timeline import Timeline
from sparks.views.text.thinking import luck_in_words, render

RECORD = ThinkRecord(
    request={"model": "owner/a model", "max_suffix_tokens": 16},
    switch="enable_thinking\x1b[31m",
    contrast="beginnings",
    marker_tokens=4,
    skipped=("problems.jsonl:3: too long",),
)


def compared(count: int) -> ThinkComparison:
    """The planted model, measured on its first `count` problems."""
    model, found = planted_model(), pairs()[:count]
    config = SnapshotConfig(points=8, threshold=0.01, threshold_mode="relative", faithfulness=False)
    swapped = [TokenPair(pair.prefix, pair.corrupted, pair.clean) for pair in found]
    on, off = (
        Timeline([take_snapshot(model, probes(part), config, progress=False)], name=name)
        for name, part in (("on", found), ("off", swapped))
    )
    return ThinkComparison(on, off, record=RECORD)


@pytest.fixture(scope="module")
def comparison():
    return compared(PROBES)


def test_the_page_names_the_heads_and_how_to_go_on(comparison):
    page = render(comparison, "my runs/think", width=120)
    assert "owner/a model (llama, 2 layers x 4 heads), thinking on against off" in page
    assert (
        "12 problems under both modes, switched by enable_thinking\\x1b[31m; what is swap" in page
    )
    assert "up to 4 tokens of each beginning; 16 tokens of own words behind it" in page
    assert "1 problem passed over" in page
    assert (
        "By the rule of growth:  2 heads are of one mode alone, more than luck gives (0 to" in page
    )
    assert "  only on (1)  L0H1\n  only off (1)  L1H2\n" in page
    assert page.count("sparks effects") == 2
    assert (
        "  sparks effects 'owner/a model' --run 'my runs/think/on' --others 'my runs/think/off' "
        "--sets exclusive --task TASK --thinking on --output 'my runs/think/effects-on'\n"
    ) in page
    for line in page.splitlines():
        if line.startswith("  sparks effects"):  # the command knows every option of it
            assert build_parser().parse_args(shlex.split(line)[1:]).sets == ["exclusive"]
    assert "--run 'my runs/think/off' --others 'my runs/think/on' --sets exclusive" in page
    assert "agree less across modes than within one in 100% of the splits for heads" in " ".join(
        page.split()
    )
    assert "\x1b" not in page
    assert "\x1b[1m" in render(comparison, width=120, color=True)
    assert "sparks effects" not in render(comparison, width=120)


@pytest.mark.parametrize("width", [40, 72, 200])
def test_tables_fit_the_width(comparison, width):
    lines = render(comparison, "think", width=width).splitlines()
    assert max(len(line) for line in lines if "sparks effects" not in line) <= width
    with pytest.raises(SparksError, match="width must be at least 40"):
        render(comparison, width=39)


def test_the_rule_exclusive_is_named_only_where_it_finds_the_same_heads(comparison):
    class Doubtful(ThinkComparison):
        """The paired test confirms one head less than the intervals."""

        def exclusive(self, mode, rule="growth"):
            return super().exclusive(mode, rule) if mode == "off" else ((0, 1), (1, 3))

    page = render(Doubtful(comparison.on, comparison.off, record=RECORD), "think", width=120)
    assert "--sets only-on=L0H1,L1H3 --task TASK --thinking on --output think/effects-on\n" in page
    assert (
        "--others think/on --sets exclusive --task TASK --thinking off --output think/effects-off\n"
        in page
    )


def test_with_too_few_probes_no_head_is_called_exclusive():
    few = compared(5)
    assert few.fewest_probes == 7
    assert few.exclusive("on") == few.exclusive("off") == ()
    assert few.states[0, 1] == UNDECIDED
    page = render(few, "think", width=120)
    assert "with 5 probes no head can be called exclusive, at least 7 are needed; 64 are" in page
    assert "no head is of one mode alone beyond doubt: there is nothing to ablate" in page


def test_luck_in_words():
    row = {"exclusive": 1, "luck_low": 0.0, "luck_high": 1.0}
    assert luck_in_words(row) == "1 head is of one mode alone, no more than luck gives (0 to 1)"
    row |= {"exclusive": 2}
    assert luck_in_words(row) == "2 heads are of one mode alone, more than luck gives (0 to 1)"


def test_the_figure_paints_each_head_as_what_it_is(comparison):
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_hex

    from sparks.views.figures.think_heads import think_heads

    figure = think_heads(comparison)
    mesh = figure.axes[0].collections[0]
    colours = np.asarray(mesh.get_array()).reshape(4, 2, 4)  # heads downwards, layers to the right
    seen = {(layer, head): to_hex(colours[head, layer]) for layer in range(2) for head in range(4)}
    legend = {
        text.get_text(): to_hex(patch.get_facecolor())
        for patch, text in zip(
            figure.legends[0].get_patches(), figure.legends[0].get_texts(), strict=True
        )
    }
    assert seen.pop((0, 1)) == legend["only thinking on"]
    assert seen.pop((1, 2)) == legend["only off"]
    assert seen.pop((0, 3)) == legend["both"]
    assert len(set(seen.values())) == 1
    assert len({*legend.values(), *seen.values()}) == 4
    assert "undecided" not in legend


# -- the test ----------------------------------------------------------------------------------


def test_where_the_mode_plays_no_part_hardly_a_head_is_told_apart():
    """150 pairs of measurements of 60 heads: a false head in 5 % of them, and two deviations."""
    rng, config = np.random.default_rng(5), GrowthConfig(flips=512)
    false = exclusive = 0
    for _ in range(150):
        own = rng.normal(0, 1, (16, 60))  # what a probe does with a head, whatever the mode
        on, off = (measured(np.exp(own + rng.normal(0, 0.3, own.shape))) for _ in range(2))
        states, higher = judged(on, off, config)
        false += bool(higher.any())
        exclusive += num_exclusive(states)
    assert false <= 150 * 0.05 + 2 * (150 * 0.05 * 0.95) ** 0.5
    assert exclusive == 0


def measured(totals: np.ndarray, loss: float = 1.0) -> Measured:
    return Measured(totals, np.full(len(totals), loss))


def test_states_by_hand():
    """Masses of 8 and 1: shared, on, off, none, and one that half of the probes use."""
    every, none = np.full(16, 8.0), np.ones(16)
    half = np.where(np.arange(16) % 2, 8.0, 2.0)
    on = np.stack([every, every, none, none, half], axis=1)
    off = np.stack([every, none, every, none, half], axis=1)
    states, higher = judged(measured(on), measured(off), GrowthConfig())
    assert states.tolist() == [SHARED, ONLY_ON, ONLY_OFF, 3, UNDECIDED]
    assert higher.tolist() == [0, 1, -1, 0, 0]
    assert num_exclusive(states) == 2
    held_on, held_off = on > 2, off > 2
    assert by_paper(held_on, held_off).tolist() == [SHARED, ONLY_ON, ONLY_OFF, 3, SHARED]
    for parts in ((measured(on, 0.01), measured(off)), (measured(on), measured(off, 0.01))):
        states, higher = judged(*parts, GrowthConfig())  # too little L to say anything
        assert set(states.tolist()) == {UNDECIDED}
        assert not higher.any()
    few = judged(measured(on[:5]), measured(off[:5]), GrowthConfig())
    assert not few[1].any()  # the paired test cannot tell
    mask = np.zeros(16, dtype=bool)
    mask[3] = True
    changed = exchanged_modes(on, off, mask)
    assert (changed[0][3] == off[3]).all()
    assert (changed[1][3] == on[3]).all()
    assert (np.delete(changed[0], 3, axis=0) == np.delete(on, 3, axis=0)).all()
