"""What changed over training, and whether it is more than luck. No torch.

    history -> growth -> states -> timeline -> nulls, regimes, comparison, answers

**Share.** What is judged is a head's part of all score mass of a probe (sum of |score| over all
edges that leave it, kept or not / that of all heads). No threshold of a circuit decides anything,
and a factor that all heads of a probe have in common cancels: a coarse integral, a growing L.

**Grew, shrank** (`growth`). The share moved from the base by more than luck and by more than the
smallest change that matters (a factor, 1.05), tested by joint sign flips over the probes.

**Active.** A head is *active* with more than an even share, 1 / (number of heads), at the base by
the best guess and later as its births and prunings say; it is *undecided* where that says inactive
and its 95 % interval does not. The number of active heads does not grow with that of the probes.

**Born, pruned.** The head changed sides of an even share, and moved that way by more than luck and
by the smallest change; at most 5 % false ones are expected over all heads and checkpoints. A head
near an even share does not flicker; a change that is settled later than it shows is marked; nothing
at a checkpoint depends on a later one. *Base* heads were active before training, *emergent* ones
are active and were born; the checkpoint of birth is a head's *cohort*.

**Floor.** Where L (median over probes) is below 0.1 nats there is nothing to attribute; nothing is
called there, and every view says so. The base is the first checkpoint with enough L.

**Paper's rule** ("Thinking Sparks!", https://arxiv.org/abs/2509.25758; `--rule paper`): a head is
active if *any* probe's circuit holds it. That count grows with the number of probes, and other
probes give other heads: on one unchanged SmolLM2-135M, two disjoint sets of 12 probes differ by 23
"births" (8 to 42). So it stands beside the default rule, not in its place. `nulls` says what an
unchanged model gives.

**Control.** With control probes each born head is *specific*, *shared* or *undecided*.

How well the rule calls: `python tests/bench/growth_power.py`; figures in tests/bench/RECORD.md.

Symbols: I~ of A.6 = `importance`, E of A.6 = `effect`, cohort of Fig. 2A = `cohort`. Read
`timeline` first, then `growth.rule`.
"""
