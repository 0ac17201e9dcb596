#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [flags of convmixer_jax.main].
# Without flags: configs/digits.py. Set EXTRAS=cuda or EXTRAS=tpu for an accelerator.
set -euo pipefail
source "$(dirname "$0")/venv.sh" "${EXTRAS:-}"
# Huge pages for large buffers, which each step on CPU allocates again (docs/performance.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec "$python" -m convmixer_jax.main "$@"
