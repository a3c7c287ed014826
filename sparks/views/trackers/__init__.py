"""W&B, trackio and TensorBoard beside the trainer's own curves, and a finished run uploaded.

`trackers` takes those that the trainer reports to; `data` says which numbers go there under which
keys, the same in all; a module each for how.
"""
