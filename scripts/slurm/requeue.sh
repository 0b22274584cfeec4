# Sourced by the batch scripts here: run a stage under srun, and have the job started again if it was
# stopped before its end. Two minutes before the time limit (--signal), and when the job is preempted,
# the stage saves and exits with 75; the next start goes on with the next step.
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

requeue_if_stopped() {
    local code=0 job=$SLURM_JOB_ID
    [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    "$@" || code=$?
    if [ "$code" -eq 75 ]; then
        echo "stopped early: $job is put back into the queue"
        scontrol requeue "$job"
    fi
    return "$code"
}

run_stage() {
    requeue_if_stopped srun --kill-on-bad-exit=1 "$python" -u "$@"
}
