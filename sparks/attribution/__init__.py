"""From a model and probes to a snapshot: exact edge attribution, circuits, faithfulness.

    batches -> model_runs -> head_gradients -> path_sums -> eap_ig -> circuit -> take_snapshot
                    secant_rules -> secant -> secant_proof -+

The scores are EAP-IG, "inputs" variant (Hanna et al. 2024, https://arxiv.org/abs/2403.17806):

    score(u -> v) = < z_u(corrupted) - z_u(clean) , mean over k of dL/d(input of v) at alpha_k >

summed over positions, with every token embedding moved from corrupted (alpha = 0) to clean (1), and
L = KL from the clean run's output, nats. A circuit is the 5000 strongest edges with |score| >= 0.1,
isolated nodes pruned (`circuit`). A snapshot also says how faithful its circuits are: with
everything outside a circuit patched to its corrupted value, the share of L that is kept
(`circuit_runs`, on some of the probes; over circuit sizes `faithfulness`).

Where we differ from "Thinking Sparks!" (https://arxiv.org/abs/2509.25758), all of it settable:

                              paper                   default here           to get the paper's
    points on the path        k/m, k = 1..m; m = 100  midpoints, m = 4       quadrature="right",
                                                                             points=100
    roles of the beginnings   swapped at the base     the same at each step  swap_base_roles=True
    keys and values           -                       the model's KV heads   sum over a group

Fast without approximation: the prefix that both beginnings share is run once, and its keys and
values are reused; what the prefixes of many probes begin with is run once for them all; points of
the path share a sequence under a mask, so that they are copied rarely (`model_runs`); only
gradients of activations are taken; and the gradient at each head's input factors through the norm,
so that a point costs head-sized work (`head_gradients`).

How we know that it is right: scores equal those of the official implementation to 1e-5 on three
architectures, and exact interventions on single edges agree. `patching`, the oracle of those
interventions, shares nothing with `eap_ig`.

Few points and many probes: with m = 4 the scores of a probe miss two fifths of its L (the
completeness gap), by a factor that nearly all of its heads have in common, so that their shares
hardly feel it; and luck between probes is what hides a change of a head (`sparks help growth`).
Where scores themselves count, in nats or against tau, take more: the paper's m = 100, or
`tolerance=0.05`, which gives each probe points until its gap is at most 5 % (`max_points` is the
cap; with `quadrature="pilot"`, six forward passes that say where L moves, in two thirds of the time
of m = 32). Points and gap stand in every snapshot.

`method="secant"` takes one backward pass between the two ends in place of points: exact at every
cut, at the cost of two points, and another attribution (`secant`). EAP-IG stays the default and the
paper's score; where each wins and loses stands in `tests/bench/RECORD.md`.

Symbols: s(u -> v | x) = `edge_score`, z = clean, z' = corrupted, m = `points`, tau = `threshold`,
n = `top_n`, L at the corrupted end = `loss_corrupted`. Read `eap_ig` first.
"""
