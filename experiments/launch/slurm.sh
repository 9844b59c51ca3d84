#!/bin/bash
# Training on Slurm: one process per node, which uses all GPUs of its node.
#
#     sbatch --export=ALL,TRAIN=FILE,VALIDATION=FILE experiments/launch/slurm.sh
#
# The same command resumes after preemption or a time limit: the workdir is on a shared file system. Slurm gives JAX the
# number and index of the processes.
#SBATCH --job-name=rmjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS="$first:8476"
srun --kill-on-bad-exit=1 python -m rmjax.train --config=configs/llama3_8b.py:h100-8 \
  --workdir="${WORKDIR:-$SLURM_SUBMIT_DIR/runs/llama3_8b}" \
  --config.data.train="$TRAIN" --config.data.validation="$VALIDATION"
