#!/usr/bin/env bash
# Start a SLURM cluster of two virtual nodes on this machine, for tests: slurm_start.sh FOLDER
#
# FOLDER takes all of its files; use it with: export SLURM_CONF=FOLDER/slurm.conf. slurm_stop.sh FOLDER ends it.
# RLX_SLURM_PORT: the first of its three ports; RLX_SLURM_KILL_WAIT: seconds from SIGTERM to SIGKILL.
# RLX_SLURM_OWNER: a process; when it is gone, however it ended, so is the cluster.
# Needs root and: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin" # where the daemons are, and a user's PATH may not lead
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || { echo "slurm_start.sh: $program is not installed" >&2; exit 3; }
done
[ "$(id -u)" = 0 ] || { echo "slurm_start.sh: only root can start SLURM" >&2; exit 3; }
mkdir -p "$folder"/{ctld,n1,n2}

# Jobs are ended by their cgroup where the freezer can be written, else by their process tree.
track=linuxproc
if [ -w /sys/fs/cgroup/freezer ]; then track=cgroup; fi

cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=${RLX_SLURM_PORT:-16817}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/$track
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobcomp.txt
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=${RLX_SLURM_KILL_WAIT:-15}
MaxArraySize=1001
MinJobAge=3600
ReturnToService=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((${RLX_SLURM_PORT:-16817} + 1)) CPUs=8 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((${RLX_SLURM_PORT:-16817} + 2)) CPUs=8 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
END
cat >"$folder/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
END

# This cluster keeps no accounting. For what asks sacct all the same, FOLDER/bin has one that asks scontrol, which
# remembers ended jobs for an hour (MinJobAge).
mkdir -p "$folder/bin"
cat >"$folder/bin/sacct" <<'END'
#!/usr/bin/env bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        scontrol --oneliner show job "$2" 2>/dev/null | while read -r line; do
            field() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" <<<"$line"; }
            name="$(field JobId)"
            if [ -n "$(field ArrayTaskId)" ]; then name="$(field ArrayJobId)_$(field ArrayTaskId)"; fi
            echo "$name|$(field JobState)|$(field NodeList)"
        done
        shift
    fi
    shift
done
exit 0
END
chmod +x "$folder/bin/sacct"

export SLURM_CONF="$folder/slurm.conf"
if [ -n "${RLX_SLURM_OWNER:-}" ]; then
    stop="$(cd "$(dirname "$0")" && pwd)/slurm_stop.sh"
    setsid bash -c 'tail --pid="$1" -f /dev/null; rm -f "$3/owner.pid"; "$2" "$3"; rm -rf "$3"' \
        slurm_owner "$RLX_SLURM_OWNER" "$stop" "$folder" </dev/null >/dev/null 2>&1 &
    echo $! >"$folder/owner.pid"
fi

begin() {
    timeout 20 "$@" || { echo "slurm_start.sh: $1 ended with status $? (124: it was not up after 20 s)" >&2; exit 1; }
}

(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
begin munged --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" --num-threads=10
begin slurmctld
begin slurmd -N n1
begin slurmd -N n2

# Both nodes are idle within a second or two.
for _ in $(seq 100); do
    if [ "$(timeout 10 sinfo --noheader --partition=main --states=idle --format=%D 2>/dev/null)" = 2 ]; then exit 0; fi
    sleep 0.2
done
echo "slurm_start.sh: the nodes did not come up; see $folder/*.log" >&2
exit 1
