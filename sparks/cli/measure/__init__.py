"""Commands that run a model: probes, replay, null, faithfulness, think."""
