#!/bin/bash
# A real SLURM on this machine, for test_slurm.py: munged, slurmctld and NODES slurmds, each in a network namespace of its own, with
# its own address and host name. Root only; installs Debian's packages where they are missing.
#   SLURMLAB=DIR start.sh    with its state in DIR; stop.sh ends it
set -euo pipefail
LAB=${SLURMLAB:?a directory for its state}
NODES=3
CPUS=64 GPUS=8 MEM_MB=500000 # what a node claims: enough for the templates as they are
NET=10.77.0 BRIDGE=slab0 PORT=26820
HERE=$(cd "$(dirname "$0")" && pwd)
export SLURM_CONF=$LAB/slurm.conf

background() { # NAME COMMAND...
    local name=$1
    shift
    setsid "$@" </dev/null >"$LAB/log/$name.out" 2>&1 &
    echo $! >"$LAB/pids/$name"
}

start_node() { # not "ip netns exec": that mounts a new /sys without cgroups, which slurmd needs
    background "slurmd.node$1" nsenter --net="/run/netns/slab-node$1" unshare --uts --mount sh -c \
        "hostname node$1 && mount --bind '$LAB/hosts' /etc/hosts && mount --bind '$LAB/resolv.conf' /etc/resolv.conf &&
         exec slurmd -D -f '$SLURM_CONF' -N node$1"
}

nodes_are_idle() {
    [ "$(timeout 2 sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l)" = "$NODES" ]
}

install_packages() {
    if ! type slurmctld slurmd sbatch munged ip >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 >/dev/null
    fi
}

make_network() {
    ip link add $BRIDGE type bridge
    ip addr add $NET.1/24 dev $BRIDGE
    ip link set $BRIDGE up
    printf '127.0.0.1 localhost\n%s %s\n' "$NET.1" "$(hostname -s)" >"$LAB/hosts"
    echo "# none, so that a reverse lookup fails at once and not after 10 s" >"$LAB/resolv.conf"
    for i in $(seq "$NODES"); do
        echo "$NET.$((10 + i)) node$i" >>"$LAB/hosts"
        ip netns add "slab-node$i"
        ip link add "slab-v$i" type veth peer name eth0 netns "slab-node$i"
        ip link set "slab-v$i" master $BRIDGE up
        ip -n "slab-node$i" link set lo up
        ip -n "slab-node$i" link set eth0 up
        ip -n "slab-node$i" addr add "$NET.$((10 + i))/24" dev eth0
        ip -n "slab-node$i" route add default via $NET.1
    done
}

write_configuration() {
    cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=$(hostname -s)($NET.1)
SlurmctldPort=$PORT
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$LAB/munge/socket,cred_expire=5
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/pids/slurmctld.own
SlurmdPidFile=$LAB/pids/slurmd.%n.own
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
PlugStackConfig=$LAB/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
DefMemPerCPU=1000
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=10
CONF
    for i in $(seq "$NODES"); do
        echo "NodeName=node$i NodeAddr=$NET.$((10 + i)) NodeHostname=node$i Port=$((PORT + 1)) CPUs=$CPUS RealMemory=$MEM_MB Gres=gpu:$GPUS"
    done >>"$SLURM_CONF"
    : >"$LAB/plugstack.conf"
    for gpu in $(seq 0 $((GPUS - 1))); do # twins of /dev/null: a count without files would register none
        mknod "$LAB/dev/nvidia$gpu" c 1 3
    done
    echo "Name=gpu File=$LAB/dev/nvidia[0-$((GPUS - 1))]" >"$LAB/gres.conf"
}

[ ! -e "$SLURM_CONF" ] || { echo "$LAB is in use: stop.sh first" >&2; exit 2; }
install_packages
mkdir -p "$LAB"/{munge,state,log,pids,dev}
for i in $(seq "$NODES"); do mkdir -p "$LAB/spool/node$i"; done
echo "$NODES" >"$LAB/nodes"
(umask 077 && head -c 128 /dev/urandom >"$LAB/munge/key")
# shellcheck disable=SC2154
trap 'status=$?; [ "$status" = 0 ] || { tail -n 20 "$LAB"/log/* >&2; "$HERE/stop.sh" >&2; }' EXIT
make_network
write_configuration
background munged munged -F --socket="$LAB/munge/socket" --key-file="$LAB/munge/key" --pid-file="$LAB/munge/pid" \
    --seed-file="$LAB/munge/seed" --log-file="$LAB/log/munged.log"
for _ in $(seq 50); do [ ! -S "$LAB/munge/socket" ] || break; sleep 0.1; done
background slurmctld slurmctld -D -f "$SLURM_CONF"
for i in $(seq "$NODES"); do start_node "$i"; done
for _ in $(seq 100); do
    if nodes_are_idle; then
        exit 0
    fi
    sleep 0.2
done
echo "the nodes were not idle within 30 s" >&2
exit 1
