#!/bin/bash
# Stage 1 on all GPUs of one node or of several. slurm/site.sh names the model and the data. From
# the project's root, or from a directory that `ilrec init` made:
#   sbatch --nodes=4 slurm/stage1.sh
# Further words are fields of the recipe: sbatch slurm/stage1.sh --learning_rate 5e-5
#SBATCH --job-name=ilrec-stage1
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

launch -m ilrec.train --ds_config "$DS_CONFIG" --config "$RECIPES/stage1.yaml" \
    --model "$MODEL" --data "$DATA" --output_dir "$RUNS/stage1" "$@"
