#!/usr/bin/env bash
# Make .venv in the repository's root and install the project with its test tools into it. Does nothing when that is
# already done.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/installed
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ]; then
    python3 -m venv .venv
    .venv/bin/pip install --quiet "torch==${TORCH_VERSION:-2.13.0}"
    .venv/bin/pip install --quiet -e ".[test,docs]"
    touch "$stamp"
fi
