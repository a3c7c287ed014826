#!/usr/bin/env bash
# What the heads of the quickstart do: switched off, beside random heads of the same layers.
usage() {
  cat <<'TEXT'
usage: bash recipes/effects.sh [--short] [--run FOLDER] [OPTION OF sparks effects ...]

  1. runs recipes/quickstart.sh where its run is not there yet
  2. has its last checkpoint solve 60 sums of two digits, twice each: as it is, and with ten heads
     off: emergent ones, base ones, those of the control probes; by the paper's rule, as the
     rule of growth finds no emergent head there
  3. does the same with six draws of random heads of the same layers for each of these sets
  4. prints the table: no set stands without its random heads

About 25 minutes and 3 GB of memory on two CPU cores. It goes on where it was stopped.

  --short         four sums and two draws, to see that everything runs
  --run FOLDER    the quickstart's folder (default: runs/quickstart)
Anything else goes to sparks effects, such as --sets top:10 or --scale 0 0.5 1.3.
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/quickstart short='' rest=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --short) short=1 ;;
    --run) run=${2:?--run needs a folder}; shift ;;
    *) rest+=("$1") ;;
  esac
  shift
done

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive
size=(--limit 60 --samples 2 --random-draws 6 --max-new-tokens 64 --batch-size 40) first=()
if [ -n "$short" ]; then
  size=(--limit 4 --samples 1 --random-draws 2 --max-new-tokens 24 --batch-size 4)
  first=(--short)
fi
# shellcheck source=recipes/setup.sh
source recipes/setup.sh demo,evaluate,wandb
last() { find "$run" -maxdepth 1 -name 'checkpoint-*' | sort -V | tail -n 1; }
[ -n "$(last 2>/dev/null)" ] || bash recipes/quickstart.sh ${first[@]+"${first[@]}"} --output "$run"

sparks effects "$(last)" --run "$run" --rule paper --sets emergent base control --most 10 \
  --task .cache/reasoning/sums.jsonl "${size[@]}" --output "$run/effects" \
  ${rest[@]+"${rest[@]}"}
