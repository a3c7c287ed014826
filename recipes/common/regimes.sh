# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the variables are those of the caller
# What compare.sh and study.sh share: the base of a size, and one run of a recipe. Sourced, not run.
#
#   prepare SIZE OUTPUT SHORT      makes base, data and teacher; sets base, data, teacher, same
#   train YAML RUN OPTION ...      one run in the folder RUN, skipped if it is done
#
# Both read accelerate (the YAML of accelerate), steps (options of every run) and rest (the user's).

say() { printf '\n== %s\n' "$*"; }

# Nothing here needs a hub. Passive waiting: on a shared machine, threads that spin cost more than
# they gain.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive

check_size() {
  case $1 in
    tiny | smollm2-135m) ;;
    *) echo "$(basename "$0"): --size must be tiny or smollm2-135m, got '$1'" >&2; exit 2 ;;
  esac
}

train() {
  local yaml=$1 run=$2 recipe=${1%%-*} started=$SECONDS own=() few=()
  shift 2
  if [ -e "$run/.done" ]; then
    echo "$run: already trained"
    return
  fi
  if [ "$recipe" = teacher ]; then # nobody reads its heads, and it solves most problems already
    recipe=sft few=(--probe_count 4 --control_count 0)
  fi
  [ ! -e "$data/control.jsonl" ] || own=(--control_probes "$data/control.jsonl")
  accelerate launch --quiet --config_file "$accelerate" "recipes/$recipe.py" \
    --config "recipes/configs/$yaml.yaml" --output_dir "$run" --dataset_name "$data/train.jsonl" \
    --probe_data "$data/problems.jsonl" --resume_from_checkpoint true ${own[@]+"${own[@]}"} "$@" \
    ${steps[@]+"${steps[@]}"} ${rest[@]+"${rest[@]}"} ${few[@]+"${few[@]}"}
  echo $((SECONDS - started)) >"$run/.done"
}

# The teacher of smollm2-135m is a fine-tuning run: the caller sets `teacher` once it has one.
prepare() {
  local size=$1 output=$2 short=$3 base_steps=()
  if [ "$size" = tiny ]; then
    data=.cache/tiny
    if [ -n "$short" ]; then
      data=$output/made base_steps=(--steps 60)
    fi
    base=$data/base teacher=$output/teacher
    python recipes/tiny_base.py --output "$data" ${base_steps[@]+"${base_steps[@]}"}
    python recipes/tiny_base.py --output "$data" --size large ${base_steps[@]+"${base_steps[@]}"}
    train teacher-tiny "$teacher" --model_name_or_path "$data/large" \
      --sparks_probes "$output/probes-teacher.jsonl"
  else
    data=.cache/reasoning base=.cache/smollm2-135m-instruct teacher=''
    python recipes/prepare_smollm2.py --output "$base"
    [ -e "$data/held-out.jsonl" ] || python recipes/build_reasoning_data.py --output "$data"
  fi
  same=(--model_name_or_path "$base" --sparks_probes "$output/probes.jsonl")
}
