#!/bin/bash
# Both stages and the ranking, each after the one before has succeeded; where one fails, those that wait for it are cancelled.
#   MODEL=... DATA=... RUNS=... slurm/submit.sh [sbatch's options for all three: --nodes=4 ...] [-- fields for both stages: --seed 1 ...]
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
    job=${job%%;*} # a federation adds its cluster's name
    echo "$name: job $job"
}

job=""
submit stage1 "${@:2}"
submit stage2 "${@:2}"
submit rank
