"""Run by test_ddp.py in every process: trains, and rank 0 writes what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

from tiny_training import PROBES, logged, optimizer_hash, tiny_trainer, weights_hash  # noqa: E402

from sparks.callback import SparksCallback  # noqa: E402


def main() -> None:
    """Arguments: output folder, `watched` or `alone`."""
    folder, how = Path(sys.argv[1]), sys.argv[2]
    callbacks = []
    if how == "watched":
        callbacks = [SparksCallback(PROBES, progress=False, steps=3, threshold=0.0, top_n=60)]
    trainer = tiny_trainer(folder, callbacks=callbacks)
    trainer.train()
    found = {
        "processes": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
        "weights": weights_hash(trainer.accelerator.unwrap_model(trainer.model)),
        "optimizer": optimizer_hash(trainer),
        "log": logged(trainer),
    }
    if trainer.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
