"""A Hugging Face model: loaded, taken apart, proved, left as found.

1. `loading` opens a checkpoint, the only place that does; missing weights are refused, and a
   model's own Python code runs only with `--trust-remote-code`.
2. `families` lists the architectures that are tested and those that are refused. `anatomy` finds
   the parts by name, the only module that knows names inside a model; `graph` names the nodes:
   embed, heads such as L5H1, L5MLP, logits.
3. `anatomy_proof` puts the pieces together again in numbers, before the first measurement: what
   does not add up is refused, with the number. `hooks` reads and moves what flows between them.
4. `guard` leaves a model as it was found: hooks, gradients, modes and random states, to the bit.
5. `adapters`, `sharding` and `processes` are what a model in training may bring along;
   `memory` says what fits; `generation` lets a model write; `fingerprint` tells models apart.

Works: decoders whose layers are one attention block and one MLP (or mixture of experts), in
sequence or side by side, with norms before or behind, scaled or not; LoRA and DoRA on them; the
language tower of vision-language models. Read `anatomy` first. An architecture is added there, and
proved by the tests of this room.
"""
