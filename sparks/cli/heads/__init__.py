"""Commands that say what heads do: evaluate, effects, ablate."""
