#!/usr/bin/env bash
# End the SLURM cluster that slurm_start.sh started, its jobs first: slurm_stop.sh FOLDER
set -uo pipefail

folder="$(cd "$1" && pwd)"
export SLURM_CONF="$folder/slurm.conf"
scancel --user=root 2>/dev/null
for name in slurmd-n1 slurmd-n2 slurmctld munged; do
    [ -f "$folder/$name.pid" ] || continue
    pid="$(cat "$folder/$name.pid")"
    kill "$pid" 2>/dev/null
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    kill -0 "$pid" 2>/dev/null && kill -9 "$pid"
done
exit 0
