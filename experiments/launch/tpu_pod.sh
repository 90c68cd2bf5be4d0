#!/usr/bin/env bash
# A Cloud TPU VM slice: the same command on every host of it, which find each other by themselves.
#
#   TPU=my-slice ZONE=us-central2-b WORKDIR=/shared/cifar10 bash experiments/launch/tpu_pod.sh install
#   TPU=… ZONE=… WORKDIR=… bash experiments/launch/tpu_pod.sh train [flags]
#   TPU=… ZONE=… bash experiments/launch/tpu_pod.sh stop
#
# WORKDIR is a folder that all hosts share (Filestore, or a bucket mounted by gcsfuse); with
# --config.checkpoint.folder=gs://… only the checkpoints need be shared.
# Stop: `stop` saves at one step on all hosts and ends; so does a maintenance event or a preemption.
# Resume: `train` again, on a slice of any size that divides the batch.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
REPOSITORY=${REPOSITORY:-$(git remote get-url origin)}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  install)
    everywhere "[ -d ddpm_jax ] || git clone '$REPOSITORY' ddpm_jax; cd ddpm_jax && git pull --ff-only \
      && python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"
    ;;
  train)
    shift
    everywhere "cd ddpm_jax && .venv/bin/python -u -m experiments.train \
      --config='${CONFIG:-configs/cifar10.py}' --workdir='${WORKDIR:?a folder that all hosts share}' \
      --config.model.dtype=bfloat16 --distributed ${*:+$(printf '%q ' "$@")}"
    ;;
  stop)
    everywhere 'pkill -TERM -f experiments.train'
    ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
