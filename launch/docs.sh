#!/usr/bin/env bash
# Builds the API reference from the docstrings into build/api/index.html; a warning is an error.
set -euo pipefail
source "$(dirname "$0")/venv.sh" docs
exec "$python" -W error -m pdoc --docformat google --no-show-source --output-directory build/api \
  convmixer_jax convmixer_jax.model convmixer_jax.depthwise convmixer_jax.pretrained \
  convmixer_jax.augment convmixer_jax.config convmixer_jax.optim.optimizer \
  convmixer_jax.optim.schedules convmixer_jax.training.build convmixer_jax.training.step \
  convmixer_jax.training.loop convmixer_jax.checkpoint.manager convmixer_jax.data.datasets "$@"
