"""One model with thinking on and off: which heads carry each mode.

    modes -> probes -> measuring (record) -> comparison (states, overlap) -> text

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758), section 6, Table 2 and Fig. 5.
"""
