#!/bin/bash
# Ranks the full catalogue for every test user with the result of stage 2. From the project's root,
# or from a directory that `ilrec init` made:
#   sbatch slurm/rank.sh
# Further words are options of ilrec/rank.py: sbatch slurm/rank.sh --split valid
#SBATCH --job-name=ilrec-rank
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
[ -f slurm/launch.sh ] || { echo "error: $PWD has no slurm/launch.sh: submit from the project's root or the directory of ilrec init, or with --chdir=IT" >&2; exit 2; }
source slurm/launch.sh

launch -m ilrec.rank --model "$RUNS/stage2/final" --data "$DATA" "$@"
