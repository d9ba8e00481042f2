#!/bin/bash
# Submits both stages and the ranking. Each job starts when the one before it has succeeded; if one
# fails, those that wait for it are cancelled.
#   MODEL=... DATA=... RUNS=... slurm/submit.sh [OPTIONS] [-- FIELDS]
# OPTIONS are sbatch's, for all three jobs (--nodes=4 ...). FIELDS are for both stages
# (--seed 1 ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done

submit() { # NAME WORDS...: prints the job's number
    local after=() name=$1
    shift
    if [ -n "$job" ]; then
        after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
    fi
    job=$(sbatch --parsable "${after[@]}" "${options[@]}" "slurm/$name.sh" "$@")
    # In a federation, sbatch adds the name of the cluster.
    job=${job%%;*}
    echo "$name: job $job"
}

job=""
submit stage1 "${@:2}"
submit stage2 "${@:2}"
submit rank
