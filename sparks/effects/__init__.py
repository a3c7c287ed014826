"""What sets of heads do: each is switched off or scaled, beside random heads of the same layers.

    sets -> plan -> run -> study -> records (paired, verdicts) -> tables, text, curves

1. `sets` finds the heads: by a rule on a run's timeline, by hand, from a control task.
2. `plan` lists the conditions: the intact model, each set, and of each set its random heads.
3. `run` answers the same problems under each condition; the only part that needs torch.
4. `records` holds a set's effect, which cannot be made without its control (`sparks.paired`,
   `verdicts`); `tables`, `text` and `curves` show it.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758), Tables 1, 2, 4 and 5; the controls, intervals
and verdicts are ours.
"""
