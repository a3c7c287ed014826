#!/usr/bin/env bash
# Everything that has to hold: format, lint, types, shell scripts, tests. Sets itself up.
#
#   bash tests/run.sh                 all of it
#   bash tests/run.sh -m 'not slow'   arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

# The browser tests need Chromium; without it they are skipped, and say so.
if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo 'setup: Chromium and its driver'
  apt-get update -qq >/dev/null && apt-get install -yqq chromium chromium-driver >/dev/null ||
    echo 'setup: no Chromium to be had: browser tests will be skipped'
fi
# shellcheck source=recipes/setup.sh
source recipes/setup.sh dev

# Passive waiting: on a shared machine, threads that spin cost more than they gain.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=passive
ruff format --check .
ruff check .
mypy
for script in recipes/*.sh recipes/common/*.sh tests/*.sh .ci/run; do bash -n "$script"; done
# Two processes, a test file to each in turn: the tests themselves run one thread.
python -m pytest --numprocesses 2 --dist loadfile "$@"
