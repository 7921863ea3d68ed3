#!/bin/bash
# Run one task of an srun step as one process of a training. Slurm's variables become torch's. The process's exit status
# is the status of the task, and the suffix of the name of an empty file in $POSTERS_STATUSES.
#   srun ... launch/slurm/task.sh python launch/train.py ...      (MASTER_ADDR and MASTER_PORT are set by the job)
set -euo pipefail
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # as in torchrun; otherwise every process would use all cores

# Slurm signals only this shell or all processes of the step, depending on how the cluster tracks processes. So the
# shell forwards each signal, always as SIGTERM: a second SIGTERM has no effect, but a second SIGINT would end the
# training at once. It waits after SIGINT, so that the training gets Slurm's own signal first, if there is one.
child='' signalled=''
# shellcheck disable=SC2317 # the traps call it
hand_on() {
  signalled=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap hand_on TERM
trap 'sleep 1; hand_on' INT

# Without the reset a process in the background would ignore SIGINT from its start.
(
  trap - INT QUIT
  exec "$@"
) <&0 &
child=$!
[[ -z $signalled ]] || hand_on # the signal arrived before the child existed

status=0
while :; do
  signalled='' status=0
  wait "$child" || status=$?
  [[ -n $signalled ]] || break # else a signal may have ended the wait; the next wait returns the child's status
done

# The file is empty, so that a full disk cannot truncate it. A failure is ignored: the job may have ended already.
if [[ -d ${POSTERS_STATUSES-} ]]; then
  : >"$POSTERS_STATUSES/$SLURM_PROCID.$status" || true
fi
exit "$status"
