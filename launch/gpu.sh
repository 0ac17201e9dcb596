#!/usr/bin/env bash
# Trains on all GPUs of this machine: bash launch/gpu.sh --config=configs/imagenet_1536_20.py
# One process drives all of them. If it is killed (out of memory, or a driver fault), it is restarted
# and resumes, at most three times. SIGTERM and Ctrl-C save and exit; the same command resumes.
set -euo pipefail
source "$(dirname "$0")/venv.sh" "${EXTRAS-cuda}"
export JAX_PLATFORMS=${JAX_PLATFORMS-cuda} # else JAX would fall back to the CPU without a GPU
# Each all-reduce of 8 MiB of gradients starts as soon as these are computed (docs/scaling.md).
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=false \
--xla_gpu_all_reduce_combine_threshold_bytes=8388608 ${XLA_FLAGS-}"

set -m # a separate process group, so that Ctrl-C reaches the run only once, through the trap
trap 'kill -TERM "$run"' TERM INT
for attempt in 1 2 3 4; do
  "$python" -m convmixer_jax.main "$@" &
  run=$!
  status=0
  wait "$run" || status=$?
  while kill -0 "$run" 2>/dev/null; do # a signal interrupted the wait, not the run
    status=0
    wait "$run" || status=$?
  done
  if ((status <= 128 || status == 129 || status == 130 || status == 143)); then break; fi
  echo "killed by signal $((status - 128)) in attempt $attempt of 4" >&2
done
exit "$status"
