#!/bin/bash
# One task of an srun step becomes one process of a training: torch is told what Slurm knows, then the command takes
# this shell's place, so that signals reach it and its exit status is the task's.
#   srun ... launch/slurm/task.sh python launch/train.py ...      (MASTER_ADDR and MASTER_PORT are set by the job)
set -euo pipefail
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # as torchrun does: else every process would take all cores
exec "$@"
