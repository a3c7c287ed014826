#!/usr/bin/env bash
# Everything that has to hold, or the part of it that a developer runs all day.
usage() {
  cat <<'TEXT'
usage: bash tests/run.sh [--quick] [OPTION OF pytest ...]

  1. makes .venv with sparks and what its tests need, and installs Chromium where it may
  2. format, lint (ruff), types (mypy), shell scripts
  3. tests, two processes side by side; which tiers there are: tests/README.md

  --quick     no test that is marked slow or browser, and no Chromium: under 3 minutes on two cores
Anything else goes to pytest:
  bash tests/run.sh --quick -k timeline      a part of the quick ones, by name
  bash tests/run.sh -m browser               one tier (it takes the place of --quick's choice)
  bash tests/run.sh --durations=10           and the ten slowest
TEXT
}
set -euo pipefail
cd "$(dirname "$0")/.."

quick='' rest=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --quick) quick=1 ;;
    *) rest+=("$1") ;;
  esac
  shift
done

# The browser tests need Chromium; without it they are skipped, and say so.
if [ -z "$quick" ] && ! command -v chromedriver >/dev/null &&
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo 'setup: Chromium and its driver'
  apt-get update -qq >/dev/null && apt-get install -yqq chromium chromium-driver >/dev/null ||
    echo 'setup: no Chromium to be had: browser tests will be skipped'
fi
# shellcheck source=recipes/setup.sh
source recipes/setup.sh dev

# Passive waiting: on a shared machine, threads that spin cost more than they gain.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive
# Tests start Python dozens of times: what is here is compiled once.
unset PYTHONDONTWRITEBYTECODE
ruff format --check .
ruff check .
mypy
for script in recipes/*.sh recipes/common/*.sh tests/*.sh .ci/run; do bash -n "$script"; done
# Two processes, a test file to each in turn: the tests themselves run one thread.
python -m pytest --numprocesses 2 --dist loadfile ${quick:+-m 'not slow and not browser'} \
  ${rest[@]+"${rest[@]}"}
