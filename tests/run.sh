#!/usr/bin/env bash
# Set up and check everything: lint, format, types, terms, documentation, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_venv.sh
.venv/bin/pre-commit run --all-files
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict --site-dir .cache/site
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# The tests of a file share what is costly to set up, so they run in one worker.
.venv/bin/python -m pytest -n "${PYTEST_WORKERS:-2}" --dist loadfile "$@"
