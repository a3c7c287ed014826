"""What is measured: one prompt with two beginnings of an answer.

    problems, or a trainer's rows (trained) -> building (with controls, rewards) -> probes -> pairs

A probe holds `clean`, what the trained model should come to write, and `corrupted`, what the model
writes before training. JSONL, one a line:

    {"prompt": [{"role": "user", "content": "What is 15 - 43 - 75?"}],
     "clean": "<think>\\nOkay, I need to work out 15 - 43 - 75 from left to right.",
     "corrupted": "1. 15 - 43 - 75 = 15 - 43 + 75", "group": "chain_sum"}

`sparks probes` builds them: from problems with reference answers and the model's own beginnings, or
from a trained and an untrained model (`--clean-model`). Both beginnings are cut to the shorter one,
at most 16 tokens. `--control 12` adds control probes (group `control`) of what is not trained:
copying a list and recalling plain facts, chosen so that the model gets them right; your own by
`--control-probes FILE`. A head that changes on them too is not specific to the behaviour.

More probes see more, and cost by their number: `sparks probes` builds 64 where the problems give as
many. With fewer than 32 hardly any change of a head is found, with very few none at all (`sparks
help growth`); it warns of that, and so does the callback before it measures.

Snapshots of different probes never mix on one timeline: each holds a hash of the token ids.

Paper ("Thinking Sparks!", https://arxiv.org/abs/2509.25758): x = a probe, z = clean,
z' = corrupted. Read `pairs` first: what the attribution is given; then `building`.
"""
