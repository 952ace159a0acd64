#!/usr/bin/env bash
# Start a SLURM cluster of two virtual nodes on this machine, for tests: slurm_start.sh FOLDER
#
# FOLDER takes all of its files; use it with: export SLURM_CONF=FOLDER/slurm.conf. slurm_stop.sh FOLDER ends it.
# RLX_SLURM_PORT: the first of its four ports; RLX_SLURM_KILL_WAIT: seconds from SIGTERM to SIGKILL.
# RLX_SLURM_ACCOUNTING=1: it keeps accounting, with slurmdbd and MariaDB, and knows root's accounts `root` and `lab` only.
# RLX_SLURM_OWNER: a process; when it is gone, however it ended, so is the cluster.
# Needs root and: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin" # where the daemons are, and a user's PATH may not lead
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
accounting="${RLX_SLURM_ACCOUNTING:-}"
port="${RLX_SLURM_PORT:-16817}"
for program in munged slurmctld slurmd sbatch ${accounting:+slurmdbd mariadbd}; do
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
SlurmctldPort=$port
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
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=8 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=8 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
END
cat >"$folder/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
END

if [ -n "$accounting" ]; then
    cat >>"$folder/slurm.conf" <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 3))
AccountingStoragePass=$folder/munge.socket
AccountingStorageEnforce=associations,limits
END
    (umask 077 && cat >"$folder/slurmdbd.conf") <<END
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 3))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile=$folder/slurmdbd.pid
LogFile=$folder/slurmdbd.log
END
fi

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
if [ -n "$accounting" ]; then
    # A database of its own, that only a socket in a folder of root's leads to: so it asks for no password.
    (umask 077 && mkdir "$folder/db" "$folder/db/data")
    database=(mariadbd --no-defaults --user=root --datadir="$folder/db/data" --innodb-log-file-size=8M
        --innodb-buffer-pool-size=32M --innodb-lock-wait-timeout=900)
    begin "${database[@]}" --bootstrap >"$folder/db/log" 2>&1 < <(
        printf 'create database mysql;\nuse mysql;\n'
        cat /usr/share/mysql/mysql_system_tables.sql
        printf 'create database slurm;\n'
    )
    export MYSQL_UNIX_PORT="$folder/db/socket"
    setsid "${database[@]}" --skip-networking --skip-grant-tables --socket="$MYSQL_UNIX_PORT" \
        --pid-file="$folder/mariadbd.pid" </dev/null >>"$folder/db/log" 2>&1 &
    for _ in $(seq 100); do
        if [ -S "$MYSQL_UNIX_PORT" ] && [ -f "$folder/mariadbd.pid" ]; then break; fi
        sleep 0.2
    done
    begin slurmdbd
    for _ in $(seq 10); do # it listens a moment later
        if known="$(timeout 10 sacctmgr --immediate add cluster test 2>&1)"; then break; fi
        sleep 1
    done
    grep -q test <<<"$known" || { echo "slurm_start.sh: sacctmgr: $known" >&2; exit 1; }
    begin sacctmgr --immediate add account lab >"$folder/sacctmgr.log"
    begin sacctmgr --immediate add user root account=lab >>"$folder/sacctmgr.log"
fi
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
