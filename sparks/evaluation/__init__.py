"""What the model answers: problems, sampled answers, checks, pass@k with intervals.

    tasks -> prompts -> samplers (or vllm_sampler) -> checks -> samples_file -> results

GSM8K, MATH-500, AIME'24 and '25, AMC, GPQA and TriviaQA from the hub, reasoning-gym tasks
(`gym:NAME`), or any JSONL with a problem and an answer; math-verify, the task's own scorer or the
text decides. Every sample is kept, and a killed evaluation goes on with the same samples.

`run.evaluate` ties it together; reading a file of samples (`results.Evaluation.load`) needs no
torch. Read `run` first.
"""
