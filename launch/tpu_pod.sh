#!/usr/bin/env bash
# Creates a slice of TPU VMs, trains on it, and deletes it:
#   TPU=convmixer ZONE=us-east5-a TYPE=v5p-256 RUNTIME=v2-alpha-tpuv5 SHARE=10.0.0.2:/share \
#     bash launch/tpu_pod.sh --config=configs/imagenet_1536_20.py --workdir=/mnt/share/runs/imagenet
# SHARE is an NFS export (Filestore) in the slice's network. Every VM mounts it at /mnt/share; it has
# the data in tensorflow_datasets/. SPOT=--spot uses a spot slice. After a pre-emption, the script
# requests a new slice every five minutes for up to a day, and the run resumes. After a failure it
# restarts the run, at most three times. Only files committed in git are used. Run the script where it
# can keep running, such as in tmux. If it is stopped, the slice remains, and the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TPU:?names the slice}" "${ZONE:?}" "${TYPE:?}" "${RUNTIME:?}" "${SHARE:?}"

tpu() { gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
state() { tpu describe --format='value(state)' 2>/dev/null || echo ABSENT; }

code=$(mktemp)
trap 'rm -f "$code"' EXIT
git archive --format=tar.gz --output="$code" HEAD
flags=$( (($# == 0)) || printf ' %q' "$@")
# The VMs' own Python is older than 3.11. First end a run that a lost connection has left behind.
remote="set -e
pkill --full '[c]onvmixer_jax.main' && sleep 60 || true
sudo mkdir -p /mnt/share
mountpoint -q /mnt/share || { sudo apt-get install -qqy nfs-common && sudo mount $(printf %q "$SHARE") /mnt/share; }
mkdir -p convmixer_jax && tar -xzf convmixer_jax.tar.gz -C convmixer_jax
pip install -qq --user uv && python3 -m uv python install -q 3.12
export PYTHON=\$(python3 -m uv python find --managed-python 3.12) TFDS_DATA_DIR=/mnt/share/tensorflow_datasets
EXTRAS=tpu exec bash convmixer_jax/launch/local.sh$flags"

train() {
  gcloud compute tpus tpu-vm scp "$code" "$TPU:convmixer_jax.tar.gz" --zone="$ZONE" --worker=all || return 255
  tpu ssh --worker=all --command="$remote"
}

tries=1 # if the first slice cannot be created, the user has to fix the flags or wait
failures=0
while true; do
  if [ "$(state)" != READY ]; then
    tpu delete --quiet 2>/dev/null || true
    until tpu create --accelerator-type="$TYPE" --version="$RUNTIME" ${SPOT:+"$SPOT"}; do
      ((--tries > 0)) || exit 1
      sleep 300
    done
  fi
  tries=288
  status=0
  train || status=$?
  ((status != 0)) || break
  sleep 60 # until the state shows a pre-emption
  if [ "$(state)" = READY ] && ((status != 143 && ++failures > 3)); then break; fi
done
tpu delete --quiet
exit "$status"
