"""Growth: which heads grew, shrank, were born or pruned. `rule` has the definitions: read it first.

`settings` holds what can be set, `luck` what sign flips give, `tables` counts and frames.
"""
