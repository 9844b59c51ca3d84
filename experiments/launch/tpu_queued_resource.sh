#!/bin/bash
# Training on a Cloud TPU slice, requested as a queued resource: v5e-32 has 8 hosts with 4 chips each.
#
#     PROJECT=... ZONE=us-west4-a SHARE=10.0.0.2:/share experiments/launch/tpu_queued_resource.sh
#
# The data and the workdir are under /data, a Filestore or Parallelstore share that all hosts mount.
set -euo pipefail

name=${NAME:-rmjax}
tpu=(gcloud compute tpus)
where=(--project="$PROJECT" --zone="$ZONE")
"${tpu[@]}" queued-resources create "$name" "${where[@]}" --node-id="$name" --accelerator-type=v5litepod-32 \
  --runtime-version=v2-alpha-tpuv5-lite --provisioning-model=flex-start --max-run-duration=24h
until "${tpu[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)' | grep -q ACTIVE; do
  sleep 30
done
on_all_hosts() { "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }
first=$("${tpu[@]}" tpu-vm describe "$name" "${where[@]}" --format='value(networkEndpoints[0].ipAddress)')
on_all_hosts "pip install 'rmjax[tpu]' && sudo mkdir -p /data && sudo mount ${SHARE:?} /data"
on_all_hosts "JAX_COORDINATOR_ADDRESS=$first:8476 python -m rmjax.train --config=configs/llama3_8b.py:v5e-32 \
  --workdir=/data/runs/llama3_8b --config.data.train=/data/train.jsonl --config.data.validation=/data/test.jsonl"
