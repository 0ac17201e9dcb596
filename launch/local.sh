#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [flags of convmixer_jax.main].
# With no flags: configs/digits.py. EXTRAS=cuda or EXTRAS=tpu for an accelerator.
set -euo pipefail
source "$(dirname "$0")/venv.sh" "${EXTRAS:-}"
exec "$python" -m convmixer_jax.main "$@"
