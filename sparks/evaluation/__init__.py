"""Evaluation: sampled answers to problems, checked; pass@1, pass@k and success@k with intervals.

    tasks -> prompts -> sampling (or vllm_backend) -> checks -> samples_file -> results -> page

`run.evaluate` ties them together. Reading a file of samples (`results.Evaluation.load`) needs no
torch.
"""
