# shellcheck shell=bash disable=SC2034
# What a site and a user set, in one place. Every job sources it (slurm/launch.sh). A variable that
# is already set keeps its value, so this needs no edit:
#   MODEL=meta-llama/Llama-3.1-8B DATA=data/office RUNS=runs/office \
#     slurm/submit.sh --nodes=4 --partition=gpu --account=me
# Partition, account, time limit and nodes are options of sbatch: on its command line, or as
# SBATCH_PARTITION=... in the environment.

# What stage 1 starts from: a directory, or a name that is in the cache.
MODEL=${MODEL:-meta-llama/Llama-3.1-8B}
# The data directory (docs/data.md).
DATA=${DATA:-data}
# On storage that all nodes share. The stages write RUNS/stage1 and RUNS/stage2.
RUNS=${RUNS:-runs}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero3_bf16.json}
# A checkout has the recipes in its package, and `ilrec init` copies them out.
RECIPES=${RECIPES:-$(if [ -d ilrec/recipes ]; then echo ilrec/recipes; else echo recipes; fi)}
# One process for each GPU.
RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}

# The environment on every node: modules, a virtual environment, a container.
# module load cuda/12.8
# source .venv/bin/activate
# CONTAINER is the words before torchrun:
# CONTAINER=(apptainer exec --nv ilrec.sif)
CONTAINER=(${CONTAINER[@]+"${CONTAINER[@]}"})

# Compute nodes often have no internet. Fill the cache on a login node.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# Threads of a rank outside the GPU. More than cores / ranks slows all of them down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# Otherwise tokenizers warn after a fork.
export TOKENIZERS_PARALLELISM=false

# NCCL. Its own choices are good on most networks. These make a failure end, and tell where it was.
# A rank that fails or hangs ends the others, which would wait for ever.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# INFO tells which network is used: NET/IB is InfiniBand, NET/Socket is Ethernet.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# The interface for the first contact, if a node has several:
# export NCCL_SOCKET_IFNAME=ib0
# The InfiniBand adapters, if not all of them have a cable:
# export NCCL_IB_HCA=mlx5
# The same choice for what runs on CPUs (barriers, gathered objects):
# export GLOO_SOCKET_IFNAME=ib0
