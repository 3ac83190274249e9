#!/usr/bin/env bash
# One Ray cluster per Slurm job: a head on the first node, the other nodes join it, then the recipe runs as the driver.
# `launch/submit --to slurm` fills in what stands between @ signs (launch/slurm.py).
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@CPUS@
@GPUS@
@MEMORY@
#SBATCH --time=@TIME@
#SBATCH --output=@LOG@
#SBATCH --requeue
set -euo pipefail

cd @FOLDER@
export PATH=@PROGRAMS@:$PATH
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
export RAY_ADDRESS="$head:$((20000 + SLURM_JOB_ID % 20000))" # two jobs of one user may share a node
export RAY_USAGE_STATS_ENABLED=0
@EXPORTS@
stop() { jobs -p | xargs -r kill 2>/dev/null || true; }
trap stop EXIT
trap 'exit 143' TERM INT # the driver runs in the background for this: bash hears a signal only while it waits

# A step inherits the job's number of tasks, so how many it has is always said: a second head on a node would be fatal.
start() { # start NODES SRUN_OPTIONS... ray start ...
  srun --overlap --nodes="$1" --ntasks="$1" --cpus-per-task=@CPUS@ "${@:2}" --num-cpus=@CPUS@ --num-gpus=@NUM_GPUS@ --block &
}
start 1 --nodelist="$head" ray start --head --port="${RAY_ADDRESS##*:}"
head_step=$!
for ((attempt = 1; ; attempt++)); do # the others can join only once it answers
  if ray status --address="$RAY_ADDRESS" >/dev/null 2>&1; then break; fi
  if ((attempt == 60)) || ! kill -0 "$head_step" 2>/dev/null; then
    echo "no Ray head on $head after $SECONDS s" >&2
    exit 1
  fi
  sleep "${RLKIT_POLL_S:-2}"
done
others=$((${#nodes[@]} - 1))
if ((others)); then start "$others" --exclude="$head" ray start --address="$RAY_ADDRESS"; fi
@COMMAND@ & # it waits by itself until the nodes have joined (cluster.wait_s)
wait $!
