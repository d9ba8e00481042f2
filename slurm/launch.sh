# shellcheck shell=bash
# Sourced by the job scripts: `launch SCRIPT WORDS...` runs a script of the project on every GPU of the job, once.
#
# One torchrun for each node, started by srun. Not the deepspeed launcher: that one reaches other nodes by ssh or pdsh, past SLURM,
# which then can neither clean up nor count what runs there, and it hands no signal on. With a fixed node rank and no restarts
# torchrun does no rendezvous that could go wrong; SLURM restarts.
#
# Stop and go on: SLURM sends USR1 to this script before a time limit or a preemption (--signal=B:USR1@120). It is handed on until
# the ranks have ended: they finish their step and write a checkpoint. Then the job is put back into the queue, with its number,
# and --resume auto, the default of ilrec/train.py, goes on. So it is where a node has died. Any other failure is final.

source slurm/site.sh

asked_to_stop=0
trap 'asked_to_stop=1' USR1

launch() {
    local port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node have different numbers
    local address status=0
    address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # torchrun must outlive USR1, which SLURM gives to every process of a step; the ranks have a handler of their own.
    # shellcheck disable=SC2016 # expanded on each node: torchrun reads its options from PET_... too
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c 'trap "" USR1; export PET_NODE_RANK="$SLURM_NODEID"; exec "$@"' node \
        "${CONTAINER[@]}" torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$RANKS_PER_NODE" \
        --master_addr="$address" --master_port="$port" --max_restarts=0 "$@" &
    wait_for "$!" || status=$?
    if [ "$status" != 0 ] && { [ "$asked_to_stop" = 1 ] || ! nodes_answer; }; then
        echo "job $SLURM_JOB_ID goes back into the queue after start ${SLURM_RESTART_COUNT:-0}" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}

# The exit status of a process, asked to stop if this script is. bash wakes up from wait at USR1, and runs the trap then.
wait_for() {
    local status
    while true; do
        status=0
        wait "$1" || status=$?
        if [ "$asked_to_stop" = 0 ] || ! kill -USR1 "$1" 2>/dev/null; then
            return "$status"
        fi
        sleep 5 # and again: ranks that are still starting do not listen yet
    done
}

# A node that has died leaves the others with an error of their own; SLURM notices it minutes later.
nodes_answer() {
    timeout 60 srun --overlap --ntasks-per-node=1 true
}
