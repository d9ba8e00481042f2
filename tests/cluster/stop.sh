#!/bin/bash
# Ends what start.sh started under SLURMLAB, and nothing else: jobs, daemons, namespaces, state.
LAB=${SLURMLAB:?the directory that start.sh was given}
export SLURM_CONF=$LAB/slurm.conf

timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel --full --signal=KILL 2>/dev/null
for name in $(seq "$(cat "$LAB/nodes")" | sed 's/^/slurmd.node/') slurmctld munged; do
    pid=$(cat "$LAB/pids/$name" 2>/dev/null) || continue
    grep -qaF "$LAB" "/proc/$pid/cmdline" "/proc/$pid/environ" 2>/dev/null || continue # gone: the number is another's by now
    kill "$pid" 2>/dev/null
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null
done
for i in $(seq "$(cat "$LAB/nodes")"); do
    ip netns pids "slab-node$i" 2>/dev/null | xargs -r kill -9 2>/dev/null
    ip netns del "slab-node$i" 2>/dev/null
    ip link del "slab-v$i" 2>/dev/null
done
ip link del slab0 2>/dev/null
rm -rf "$LAB"
