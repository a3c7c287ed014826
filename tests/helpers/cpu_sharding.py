"""Stand-ins that let FSDP2 and DeepSpeed run on CPU processes; for tests alone.

Stock accelerate does neither: asked for FSDP on a CPU it trains with DDP and says nothing, and for
DeepSpeed it wants an accelerator. What is replaced is the choice of the kind of training; sharding,
gathering and stepping are the real libraries', over gloo. NCCL, streams and offload are not tested.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType
from transformers.integrations.deepspeed import unset_hf_deepspeed_config


def use_fsdp2() -> None:
    """Make accelerate shard with FSDP2 in CPU processes."""
    os.environ |= {
        "FSDP_VERSION": "2",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    begin = state.AcceleratorState.__init__

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        fresh = not state.AcceleratorState._shared_state
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fresh and fsdp_plugin is not None:
            assert self.distributed_type == DistributedType.MULTI_CPU
            for shared in (state.AcceleratorState, state.PartialState):
                shared._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    state.AcceleratorState.__init__ = begin_sharded


def use_deepspeed() -> None:
    """Make accelerate hand CPU processes to DeepSpeed."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    os.environ.pop("ACCELERATE_USE_CPU", None)

    def gloo(self: Any, *_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    def cpu(self: Any) -> None:
        self.device = torch.device("cpu")

    state.PartialState._prepare_backend = gloo
    state.PartialState.set_device = cpu
    import deepspeed

    deepspeed.ops.__compatible_ops__.clear()  # or it compiles one, for a minute


def forget_training() -> None:
    """Let the next training in this process begin as the first did."""
    state.AcceleratorState._reset_state()
    state.GradientState._reset_state()
    unset_hf_deepspeed_config()  # or models would be sharded as they are made


def deepspeed_config(stage: int) -> dict[str, Any]:
    """A configuration that shards even the smallest weight."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
