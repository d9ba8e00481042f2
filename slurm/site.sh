# shellcheck shell=bash disable=SC2034
# What a site and a user set, in one place; sourced by every job (slurm/launch.sh). Variables that are set already win, so that
#   MODEL=meta-llama/Llama-3.1-8B DATA=data/office RUNS=runs/office slurm/submit.sh --nodes=4 --partition=gpu --account=me
# needs no edit. Partition, account, time limit and nodes are sbatch's own words: on its command line, or as SBATCH_PARTITION=...

MODEL=${MODEL:-meta-llama/Llama-3.1-8B}             # what stage 1 starts from: a directory, or a name that is in the cache
DATA=${DATA:-data}                                  # the data directory (docs/data.md)
RUNS=${RUNS:-runs}                                  # on storage that all nodes share: RUNS/stage1, RUNS/stage2
DS_CONFIG=${DS_CONFIG:-ds_configs/zero3_bf16.json}
RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}  # one process for each GPU

# The environment, on every node: modules, a virtual environment, a container.
# module load cuda/12.8
# source .venv/bin/activate
# CONTAINER=(apptainer exec --nv ilrec.sif)         # words before torchrun
CONTAINER=(${CONTAINER[@]+"${CONTAINER[@]}"})

export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}          # compute nodes often have no internet: fill the cache on a login node
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}        # threads of a rank outside the GPU; more than cores / ranks slows all down
export TOKENIZERS_PARALLELISM=false                 # tokenizers warn after a fork otherwise

# NCCL. Its own choices are good on most fabrics; these make failures end, and say where.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1            # a rank that fails or hangs ends the others, which would wait for ever
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}               # INFO tells which network is used: NET/IB is InfiniBand, NET/Socket is Ethernet
# export NCCL_SOCKET_IFNAME=ib0                     # the interface for the first contact, where a node has several
# export NCCL_IB_HCA=mlx5                           # the InfiniBand adapters, where not all are cabled
# export GLOO_SOCKET_IFNAME=ib0                     # the same choice for what runs on CPUs: barriers, gathered objects
