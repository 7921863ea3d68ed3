#!/bin/bash
# Run one task of an srun step as one process of a training, with torch's variables set from Slurm's. The task ends with
# the exit status of the process. An empty file RANK.STATUS in $POSTERS_STATUSES records this status.
#   srun ... launch/slurm/task.sh python launch/train.py ...      (MASTER_ADDR and MASTER_PORT are set by the job)
set -euo pipefail
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # as in torchrun; without a value every process uses all cores

# Depending on the cluster, Slurm signals only this shell, or all processes of the step. So the shell forwards each
# signal to the training. It forwards SIGINT as SIGTERM, because a second SIGINT ends the training at once, but a second
# SIGTERM has no effect. It first waits a second for a SIGINT that Slurm itself may send.
child='' signalled=''
# shellcheck disable=SC2317 # the traps call it
hand_on() {
  signalled=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap hand_on TERM
trap 'sleep 1; hand_on' INT

# The traps are reset, because a background process of a shell script ignores SIGINT by default.
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
  [[ -n $signalled ]] || break # a signal can end the wait; the next wait then returns the child's status
done

# The file is empty, so that a full disk cannot truncate it. An error is ignored, because the job may have ended already.
if [[ -d ${POSTERS_STATUSES-} ]]; then
  : >"$POSTERS_STATUSES/$SLURM_PROCID.$status" || true
fi
exit "$status"
