#!/usr/bin/env bash
# End the SLURM cluster that slurm_start.sh started, its jobs first: slurm_stop.sh FOLDER
set -uo pipefail

folder="$(cd "$1" && pwd)" || exit 1
export SLURM_CONF="$folder/slurm.conf"

# What waits for the owner's end to do this; -- and a minus: the whole of its group.
if [ -f "$folder/owner.pid" ]; then kill -- -"$(cat "$folder/owner.pid")" 2>/dev/null; fi

# Jobs outlive a slurmd that is ended: so they come first.
if timeout 10 scancel --user=root 2>/dev/null; then
    for _ in $(seq 150); do
        [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break
        sleep 0.2
    done
fi
for name in slurmd-n1 slurmd-n2 slurmctld slurmdbd mariadbd munged; do
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
