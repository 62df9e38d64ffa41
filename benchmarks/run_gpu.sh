#!/usr/bin/env bash
# All that one GPU can tell; `bash benchmarks/run_gpu.sh --help` says how. PYTHON=... takes that Python, in place of
# .venv or python3; it needs torch and Triton, and the rest comes with --wheels.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$root/.venv/bin/python" ] || PYTHON="$root/.venv/bin/python"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m benchmarks.gpu "$@"
