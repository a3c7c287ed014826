"""What a run keeps on disk, and how it is read again. No torch.

    RUN/                            `OUTPUT_DIR/sparks` beside a trainer
      step-00000010.safetensors     one snapshot
      metrics.json                  the trainer's log so far: [{"step": 1, "loss": 2.3, ...}, ...]
      probes.jsonl                  the probes that were measured
      step-00000020.failed          why a step has no snapshot
      evaluation/                   sampled answers of the checkpoints (`evaluations`)

Files are written under a temporary name, flushed to the disk and renamed, so that no reader ever
meets half a file. What is damaged is named and left out; a killed and resumed run goes on with its
timeline, without gap or duplicate. Read `run_folder` first.
"""
