# shellcheck shell=bash
# Sourced by the job scripts: `launch -m MODULE WORDS...` runs a program once on every GPU of the
# job. Named as a module, it is found in a checkout and in an installed package alike.
#
# srun starts one torchrun on each node. The deepspeed launcher is not used: it reaches other nodes
# by ssh or pdsh, past SLURM, which then can neither clean up nor count what runs there; and it
# passes no signal on. With fixed node ranks and no restarts, torchrun does no rendezvous that could
# fail. SLURM does the restarts.
#
# Stop and go on: SLURM sends USR1 to this script before a time limit or a preemption
# (--signal=B:USR1@120). The script passes it on until the ranks have ended: they finish their step
# and write a checkpoint. Then the job goes back into the queue under its own number, and
# --resume auto, the default of ilrec/train.py, continues it. The same happens when a node has died.
# Any other failure is final.

source slurm/site.sh

asked_to_stop=0
trap 'asked_to_stop=1' USR1

launch() {
    # Jobs that share a node have different numbers, hence different ports.
    local port=$((20000 + SLURM_JOB_ID % 20000))
    local address status=0
    address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # torchrun must survive USR1, which SLURM sends to every process of a step. The ranks have a
    # handler of their own.
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

# Waits for a process and returns its exit status. If this script is asked to stop, it asks the
# process. At USR1 bash leaves `wait` and runs the trap.
wait_for() {
    local status
    while true; do
        status=0
        wait "$1" || status=$?
        if [ "$asked_to_stop" = 0 ] || ! kill -USR1 "$1" 2>/dev/null; then
            return "$status"
        fi
        # Ask again later: ranks that are still starting do not listen yet.
        sleep 5
    done
}

# When a node has died, the others end with an error of their own, minutes before SLURM notices.
nodes_answer() {
    timeout 60 srun --overlap --ntasks-per-node=1 true
}
