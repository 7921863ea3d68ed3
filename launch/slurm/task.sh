#!/bin/bash
# One task of an srun step becomes one process of a training: torch is told what Slurm knows, and the job what became of
# the process: its exit status is the task's, and the last part of the name of an empty file in $POSTERS_STATUSES.
#   srun ... launch/slurm/task.sh python launch/train.py ...      (MASTER_ADDR and MASTER_PORT are set by the job)
set -euo pipefail
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_STEP_NUM_TASKS"
export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # as torchrun does: else every process would take all cores

# Whether Slurm signals this shell alone or all processes of the step depends on how the cluster tracks processes. So
# the shell hands on what it gets, always as SIGTERM: a second one changes nothing, a second SIGINT would end the
# training at once. After SIGINT with a pause, so that the training has its own first, if it was sent one.
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
[[ -z $signalled ]] || hand_on # it came before there was anybody to hand it on to

status=0
while :; do
  signalled='' status=0
  wait "$child" || status=$?
  [[ -n $signalled ]] || break # else it may be the signal that ended the waiting; the shell remembers a child's status
done

# Nothing is in a file that a full disk could lose, and once the job has ended nobody asks.
if [[ -d ${POSTERS_STATUSES-} ]]; then
  : >"$POSTERS_STATUSES/$SLURM_PROCID.$status" || true
fi
exit "$status"
