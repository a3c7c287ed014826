"""What heads do: chosen, switched off beside random heads of the same layers, exported.

That a head is in a circuit says that the behaviour runs through it, not that it is needed.

    choose_heads -> interventions (with head_means) -> export
    sets -> plan -> run -> study -> records (judging) -> tables

1. `choose_heads`: by hand, or by a rule on a run: `emergent@40`, `kept`, `pruned`, `base`,
   `base-only`, `top:10`, `exclusive` to a run; and matched random sets.
2. `interventions`: a head's slice x of the `o_proj` input becomes m + s (x - m): zero (s = 0),
   scaled (s = 1.3), or mean ablation (m over reference texts, of each position where asked).
   Grouped-query attention, LoRA and generation caches need nothing of their own; afterwards the
   model is as it was, to the bit.
3. `export` folds it into the weights, so that vLLM or lm-eval runs it unchanged; the checkpoint is
   loaded again and run before it is put in place. `--overwrite` replaces an earlier export and
   nothing else, never the model it reads. A mean needs a bias behind the heads (llama,
   qwen3, smollm3 and starcoder2 can hold one); others are refused.
4. `plan` lists the conditions of a study: the intact model, each set, and of each set its random
   heads; `run` answers the same problems under each; `records` holds a set's effect, which cannot
   be made without its control. *Beyond matched random heads* means that the set differs from single
   draws, not just from their mean, and on the problems too, corrected over all sets (Holm).

Limits: a set that is needed only together with others shows nothing; random heads can break a
behaviour by luck; zero ablation takes more than what a score predicts; with six draws only large
effects pass.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758), Tables 1, 2, 4 and 5; the controls, intervals
and verdicts are ours. Read `interventions` first.
"""
