"""One model with thinking on and off: which heads carry each mode.

    settings -> probes -> measuring (record) -> states, overlap -> comparison

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758), section 6, Table 2 and Fig. 5. The switch of
a chat template is `probes.thinking_switch`. Read `comparison` first.
"""
