"""What a run keeps on disk, and how it is read again. No torch.

    RUN/                            `OUTPUT_DIR/sparks` beside a trainer
      step-00000010.safetensors     one snapshot
      metrics.json                  the trainer's log so far: [{"step": 1, "loss": 2.3, ...}, ...]
      probes.jsonl                  the probes that were measured
      step-00000020.failed          why a step has no snapshot
      evaluation/                   sampled answers of the checkpoints (`evaluations`)
      null.json                     what an unchanged model gives, where it was measured
      run.json                      the run's id, which every snapshot has too
      attempt-1/                    an earlier run that was started in the same folder, whole
      .lock                         one training writes at a time; it dies with its process

Files are written under a temporary name, flushed to the disk and renamed, so that no reader ever
meets half a file. A snapshot has a checksum. What is damaged, of another run, a pipe, a link that
leads out of the folder or beyond a sane size is named in one line and left out. A killed and
resumed run goes on with its timeline, without gap or duplicate; a script that is started again
moves the run that it finds to `attempt-N`; a second training in the same folder is refused while
the first lives. Read `run_folder` first.
"""
