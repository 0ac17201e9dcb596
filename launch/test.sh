#!/usr/bin/env bash
# Checks the code and runs the tests: bash launch/test.sh [flags of pytest]. It skips the slow ones
# (whole commands, clusters); -m '' includes them.
set -euo pipefail
source "$(dirname "$0")/venv.sh" test
"${python%/*}/shellcheck" launch/*.sh launch/slurm.sbatch .ci/run
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest --numprocesses=2 -m 'not slow' "$@"
