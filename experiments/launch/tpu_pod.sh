#!/usr/bin/env bash
# A slice of Cloud TPU machines: one command on every host, which find each other by themselves.
#
#   export TPU=my-slice ZONE=us-central1-a TYPE=v5litepod-16 WORKDIR=/shared/cifar10
#   bash experiments/launch/tpu_pod.sh create [--spot]   joins the queue for the machines
#   bash experiments/launch/tpu_pod.sh wait              until they are there
#   bash experiments/launch/tpu_pod.sh install           Python, the commit here, packages, data
#   bash experiments/launch/tpu_pod.sh train [flags]     starts training, which goes on without ssh
#   bash experiments/launch/tpu_pod.sh log               follows host 0 (WORKER=3: host 3)
#   bash experiments/launch/tpu_pod.sh stop              saves at one step on all hosts and ends
#   bash experiments/launch/tpu_pod.sh delete            gives the machines back
#
# The machines cost money until `delete`, whether they train or not. `create-now` asks for them
# outside the queue, and fails where none are free. Flags of both go to gcloud: --spot,
# --service-account, --network and so on. WORKDIR is a folder that all hosts share.
# Resume: `train` again, on a slice of any size that divides the batch.
# CONFIG names another config. RUNTIME names another image than the usual one of the TYPE. DATASET
# names another set to prepare than the config's; none where it is empty. The hosts get
# JAX_COMPILATION_CACHE_DIR and LIBTPU_INIT_ARGS where they are set here.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
[ $# -gt 0 ] || usage
command=$1
shift
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
CONFIG=${CONFIG:-configs/cifar10.py}

# Of https://cloud.google.com/tpu/docs/runtimes, for JAX.
runtime() {
  case "${TYPE:?the kind and size of the slice, as v5litepod-16, v5p-32 or v6e-16}" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) echo "TYPE: '$TYPE' is of no known kind; name its image by RUNTIME" >&2 && exit 2 ;;
  esac
}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

queue() {
  gcloud compute tpus queued-resources "$1" "$TPU" --zone="$ZONE" "${@:2}"
}

machines() {
  gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" "${@:2}"
}

create() {
  local image
  image=${RUNTIME:-$(runtime)}
  if [ "$1" = create ]; then
    queue create --node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="$image" "${@:2}"
  else
    machines create --accelerator-type="$TYPE" --version="$image" "${@:2}"
  fi
}

state() {
  queue describe --format='value(state.state)' 2>/dev/null ||
    machines describe --format='value(state)'
}

wait_for() {
  local now
  while now=$(state); do
    case "$now" in
      ACTIVE | READY) return ;;
      FAILED | SUSPEND* | PREEMPTED | TERMINATED | DELETING)
        echo "$TPU is $now: delete it and create it anew" >&2
        exit 1
        ;;
    esac
    echo "$TPU is $now" >&2
    sleep "${POLL:-30}"
  done
  exit 1
}

# The set of a config where it is one to prepare, and nothing where it is built in or lies in files.
TO_PREPARE='import runpy, sys
from ddpm_jax.data import DATASETS
name = runpy.run_path(sys.argv[1])["get_config"]().dataset.name
print("" if name in DATASETS else name)'

# TPU images have Python 3.10, which is too old: uv brings one of its own.
install() {
  local folder name
  name="\$(.venv/bin/python -c $(printf '%q ' "$TO_PREPARE" "$CONFIG"))"
  folder=$(mktemp -d)
  git bundle create --quiet "$folder/ddpm_jax.bundle" HEAD
  gcloud compute tpus tpu-vm scp "$folder/ddpm_jax.bundle" "$TPU:" --zone="$ZONE" --worker=all
  rm -r "$folder"
  everywhere "set -eu
    python3 -m pip install --quiet --user uv
    git init --quiet ddpm_jax
    cd ddpm_jax
    git fetch --quiet ../ddpm_jax.bundle HEAD
    git checkout --quiet --force FETCH_HEAD
    python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv -c constraints.txt -e '.[tpu,gcs,tfds-prepare]'
    name=${DATASET-$name}
    [ -z \"\$name\" ] || .venv/bin/python -m ddpm_jax.data.prepare \"\$name\""
}

# A host that was started anew may have given the number to another process.
# shellcheck disable=SC2016  # the hosts expand it
running='running() {
      grep -qa experiments.train "/proc/$(cat train.pid)/cmdline"
    } 2>/dev/null'

train() {
  : "${WORKDIR:?a folder that all hosts share}"
  local name handed=()
  for name in JAX_COMPILATION_CACHE_DIR LIBTPU_INIT_ARGS; do
    [ -z "${!name:-}" ] || handed+=("$name=${!name}")
  done
  everywhere "cd ddpm_jax
    $running
    running && { echo 'it trains already: stop it first' >&2; exit 1; }
    setsid env $(printf '%q ' ${handed[@]+"${handed[@]}"} .venv/bin/python -u -m \
    experiments.train --config="$CONFIG" --workdir="$WORKDIR" --config.model.dtype=bfloat16 \
    --distributed --watch_metadata "$@") \
      >> train.log 2>&1 < /dev/null &
    echo \$! > train.pid"
}

log() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="${WORKER:-0}" \
    --command='tail -n 100 -F ddpm_jax/train.log'
}

stop() {
  everywhere "cd ddpm_jax
    $running
    running || { echo 'nothing trains here'; exit 0; }
    kill -TERM \$(cat train.pid)
    for _ in \$(seq 600); do
      running || { tail -n 3 train.log; exit 0; }
      sleep 1
    done
    echo 'it still runs after 600 s' >&2
    exit 1"
  echo 'The machines cost money until they are deleted: tpu_pod.sh delete' >&2
}

delete() {
  if queue describe >/dev/null 2>&1; then
    queue delete --force "$@"
  else
    machines delete "$@"
  fi
}

case "$command" in
  create | create-now) create "$command" "$@" ;;
  wait) wait_for ;;
  install | train | log | stop | delete) "$command" "$@" ;;
  *) usage ;;
esac
