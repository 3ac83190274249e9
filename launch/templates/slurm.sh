#!/usr/bin/env bash
# One Ray cluster per Slurm job: a head on the first node, the other nodes join it, then the recipe runs as the driver.
# `launch/submit --to slurm` fills in what stands between @ signs (launch/slurm.py).
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@CPUS@
@GPUS@
#SBATCH --time=@TIME@
#SBATCH --output=@LOG@
#SBATCH --requeue
set -euo pipefail

cd @FOLDER@
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
export RAY_ADDRESS="$head:$((20000 + SLURM_JOB_ID % 20000))" # two jobs of one user may share a node
export RAY_USAGE_STATS_ENABLED=0
stop() { jobs -p | xargs -r kill 2>/dev/null || true; }
trap stop EXIT

start() { srun --overlap --ntasks-per-node=1 --cpus-per-task=@CPUS@ "$@" --num-cpus=@CPUS@ --num-gpus=@NUM_GPUS@ --block & }
start --nodes=1 --nodelist="$head" ray start --head --port="${RAY_ADDRESS##*:}"
for ((attempt = 1; ; attempt++)); do # the others can join only once it answers
  if ray status --address="$RAY_ADDRESS" >/dev/null 2>&1; then break; fi
  if ((attempt == 60)); then
    echo "no Ray head on $head after 120 s" >&2
    exit 1
  fi
  sleep "${RLKIT_POLL_S:-2}"
done
if ((${#nodes[@]} > 1)); then
  start --nodes=$((${#nodes[@]} - 1)) --exclude="$head" ray start --address="$RAY_ADDRESS"
fi
@COMMAND@
