#!/usr/bin/env bash
# One machine with several GPUs: one process drives them all, and there is nothing to launch.
#
#   CONFIG=configs/cifar10.py WORKDIR=runs/cifar10 bash experiments/launch/gpus.sh [flags]
#
# Which GPUs: CUDA_VISIBLE_DEVICES=0,1 before it. The batch (config.dataset.batch_size) is over all of
# them. Further flags go to experiments.train, as --config.parallel.mode=fsdp for a state that is too
# large for one of them.
# Stop: Ctrl-C or `kill PID` saves first. Resume: the same command, on as many GPUs as there are then.
set -euo pipefail
cd "$(dirname "$0")/../.."

exec "${PYTHON:-.venv/bin/python}" -m experiments.train \
  --config="${CONFIG:-configs/cifar10.py}" --workdir="${WORKDIR:-runs/cifar10}" \
  --config.model.dtype=bfloat16 "$@"
