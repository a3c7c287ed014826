"""Commands that run a model: check, probes, replay, null, faithfulness, think."""
