"""How much of a behaviour circuits carry: of one circuit, and over circuit sizes.

    runs (one or many circuits of a pair) -> measuring (curve) -> results -> text; mib

1. `runs`: a circuit alone, or all but a circuit, on one pair; snapshots use it too.
2. `curve`: which circuits are run and what their areas are, CPR and CMD; `measuring` runs them.
3. `mib`: edge scores in the form that the MIB benchmark's evaluator reads.
"""
