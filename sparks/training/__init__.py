"""Beside a training and after it: the callback, replay, and measurements that need the run's model.

`callback` says when, `recorder` does the work in every process, `own_probes` builds probes where
none are given, `arguments` reads the settings from a script's command line and YAML, `evaluator`
answers problems at each snapshot, `replay` takes the same snapshots from checkpoints afterwards,
`null` measures what an unchanged model gives.

`SparksCallback()` takes its probes from what is trained, when training begins; a resumed run takes
them from its folder. Clean against corrupted:

    SFT, Trainer                the supervised part, against what the model writes (greedy)
    DPO; KTO                    chosen against rejected; desirable against undesirable
    GRPO, RLOO                  a reference answer where the rows have one (solution, answer, ...;
                                `reference` names another column), against what the model writes;
                                else the best of four sampled answers against the worst, by reward
    distillation, GKD           what the teacher writes, against what the model writes

Rewards and the teacher are the trainer's: `SparksCallback.attach(trainer)` in place of
`callbacks=[...]`, or `reward_funcs=[...]`. Rows and answers are drawn under a seed, control probes
stand beside them, and all lie in `probes.jsonl` of the run folder.

Training is untouched: weights, optimizer state, logged losses and rewards, sampled completions,
random states and checkpoint files are bitwise equal with and without the callback.

    trainer                                  situations
    TRL SFTTrainer                           full, LoRA, gradient checkpointing, bf16, accumulation,
                                             resumed
    TRL GRPOTrainer                          full, LoRA, gradient checkpointing, bf16, several steps
                                             a generation, resumed
    TRL DistillationTrainer                  full, LoRA, gradient checkpointing, bf16, resumed
    TRL GKD, DPO, KTO, RLOO; Trainer         full

    several processes                        how a snapshot is taken
    DDP, DeepSpeed ZeRO-2                    the probes are shared out; process 0 writes
    FSDP2, DeepSpeed ZeRO-3                  the weights are gathered once a snapshot into a whole
                                             copy on each device, then as DDP
    FSDP1; tensor, context, sequence         refused with one line; measure the checkpoints with
    parallelism                              `sparks replay`

    what is trained
    all weights; LoRA, rsLoRA, DoRA; tied    works; an adapter run resumed without a base snapshot
    embeddings                               gets one with its adapter disabled
    bf16 weights, bf16 autocast, fp16        works; the precision is noted in each snapshot
    weights
    fp16 autocast                            works on a model wrapped as accelerate does it
    packing, padding-free batches, NEFTune   works
    `torch_compile=True`, a compiled model   works; snapshots run eagerly, nothing compiles again
    Liger kernels                            rest during a snapshot (its RoPE writes in place)
    quantised weights with an adapter        works for weights dequantised layer by layer
    virtual tokens, activation quantisation  refused with one line

Each row has a test with a control that shows that the test would notice (`tests/training`). The
sharded ways ran over gloo on CPUs, where a stand-in makes accelerate's choice of them; NCCL, CUDA
streams, offload and several machines were not run. A sharded model is never called; the price is
that one whole model, in the type that it computes in, has to fit beside the shards of each device.
If it does not, the snapshot is left out with a line that says how much is missing.

A snapshot that fails during training is told in a warning and named as a hole (`on_error="raise"`
stops instead); mistakes in probes, model or folder stop the run before its first step. After each
snapshot a line tells its seconds and the share of the run's time that snapshots have taken so far.

A script with TRL's parser takes the settings from its command line and YAML:
`TrlParser((SFTConfig, ModelConfig, SparksArguments))`, then `callbacks=[sparks_args.callback()]`,
or `SparksCallback.attach(trainer, sparks_args.callback())`.

A training ends with its verdict, the report's path and the command to look again; one that is
broken off (Ctrl-C, a crash) says when its script ends what it has left.
Read `callback` first.
"""
