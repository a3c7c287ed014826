"""What changed over training, and whether it is more than luck. No torch.

    history -> calibration, growth -> states -> timeline -> nulls, regimes, comparison, answers

**Active.** A head's *inclusion* is the share of probes and of nine circuit settings (2, 5, 10 % of
the edges; tau at 0.3, 0.6, 1.2 % of L) that hold it, with a 95 % interval over the probes. It is
free of the model's size and of the scale of L, and takes no extra passes. A head is *active* above
one half beyond doubt, *inactive* below, else *undecided*. More probes leave fewer heads undecided,
but the number of heads above one half stays.

**Born, pruned.** The head changed sides, and its inclusion changed probe by probe by more than luck
(exact paired sign-flip test; at most 5 % false ones expected over all heads and checkpoints
together). A head near the threshold does not flicker; a change that is settled later than it shows
is marked; nothing at a checkpoint depends on a later one. *Base* heads were active before training,
*emergent* ones are active and were born; the checkpoint of birth is a head's *cohort*. A head that
was undecided at first and is active now, without a rise beyond luck, has no known birth.

**Grew, shrank** (`growth`). A head's *share* is its part of all score mass of a probe. It grew if
its share moved from the base by more than luck and by more than the smallest change that matters (a
factor, 1.05), tested by joint sign flips over probes. Shares keep the size of a move, which
inclusion throws away: with the same probes many more changes are seen.

**Floor.** Where L (median over probes) is below 0.1 nats there is nothing to attribute; nothing is
called there, and every view says so.

**Paper's rule** ("Thinking Sparks!", https://arxiv.org/abs/2509.25758; `--rule paper`): a head is
active if *any* probe's circuit holds it. That count grows with the number of probes, and other
probes give other heads: on one unchanged SmolLM2-135M, two disjoint sets of 12 probes differ by 23
"births" (8 to 42). So it stands beside the default rule, not in its place. `nulls` says what an
unchanged model gives.

**Control.** With control probes each born head is *specific*, *shared* or *undecided*.

How well the rules call: `python tests/bench/calibration.py null` (false calls on one unchanged
model), `planted` (heads edited at known checkpoints), `python tests/bench/growth_power.py`; figures
in tests/bench/RECORD.md. The false discovery rate is proved for heads that are independent; for
those of one model it is measured.

Symbols: I~ of A.6 = `importance`, E of A.6 = `effect`, cohort of Fig. 2A = `cohort`. Read
`timeline` first, then `calibration` and `growth`.
"""
