#!/bin/bash
# An array over seeds, one task each: sbatch scripts/slurm/seeds.sh
#
# All tasks share one sweep directory. `rlx train -m` with one combination of values is a sweep of one job: where it is done
# already it is skipped, and where it has a checkpoint it is gone on with. So the same script may be submitted again and
# again, with more seeds, too.
#
#SBATCH --job-name=ppo-seeds
#SBATCH --array=0-9%4             # ten seeds, four at once
#SBATCH --time=4:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.txt

rlx train -m algo=ppo env=CartPole seed="$SLURM_ARRAY_TASK_ID" total_steps=1_000_000 run_dir=runs/seeds &
training=$!

queue_again=no
trap 'queue_again=yes; kill -TERM $training' USR1
trap 'kill -TERM $training' TERM
while kill -0 $training 2>/dev/null; do
    wait $training
done
wait $training
status=$?
if [ $queue_again = yes ] && [ $status = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
