#!/usr/bin/env bash
# Runs a `jaxface` command on every machine of a Cloud TPU slice, or of several slices at once.
#
#   TPU=my-v5e-16 ZONE=us-west4-a experiments/launch/tpu_pod.sh \
#     train --config experiments/vae.py:mask_ssim_l2 --workdir gs://my-bucket/runs/best --data-dir /mnt/bucket/data
#
# Several slices are made by one request, and named by it: QUEUED=my-request instead of TPU=my-v5e-16, after
#   gcloud compute tpus queued-resources create my-request --node-count=2 --node-prefix=my-slice --accelerator-type=...
# of at most 64 machines in all, as many as gcloud starts a command on at once.
# Nothing else changes: batches are cut over all slices, and those devices that share parameters
# (`--config.parallel.fsdp`) lie in one slice.
#
# Every machine wants the repository at ~/jaxface with a .venv (`pip install -e '.[tpu]' gcsfs`), and the prepared data
# on a disk or mounted, say by `gcsfuse --implicit-dirs my-bucket /mnt/bucket`. A workdir may be mounted, too, by
# gcsfuse with --rename-dir-limit=100000, because a checkpoint's folder is renamed when it is whole. Say this in tmux
# or the like. A spot slice that is taken back saves first; say the same again, on slices of whatever size.
# What LIBTPU_INIT_ARGS tells the TPU's compiler here, it tells it on every machine.
set -euo pipefail

: "${ZONE:?the zone of the TPU}"
options="${LIBTPU_INIT_ARGS:+LIBTPU_INIT_ARGS=$(printf '%q' "$LIBTPU_INIT_ARGS")}"
command="cd ~/jaxface && exec env $options .venv/bin/jaxface $(printf '%q ' "$@")--coordinator auto"

if [[ -n "${QUEUED:-}" ]]; then
  exec gcloud compute tpus queued-resources ssh "$QUEUED" --zone="$ZONE" --node=all --worker=all --command="$command"
fi
: "${TPU:?the name of the slice, or QUEUED}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
