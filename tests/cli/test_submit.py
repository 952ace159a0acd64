"""`rlx submit` without a cluster: the script's text, what is refused, and what a refusal by SLURM leaves behind."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlx.cli.app import app
from rlx.run.sweep import Sweep

SbatchSays = Callable[[str], None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.fixture
def sbatch(folder: Path) -> SbatchSays:
    """Put a shell script in sbatch's place, for what a cluster of the tests' own would never say."""

    def says(text: str, name: str = "sbatch") -> None:
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\nPATH={os.defpath}\n{text}\n")
        path.chmod(0o755)

    return says


def submit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["submit", *arguments], prog_name="rlx")


def refused(*arguments: str) -> str:
    done = submit(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").rstrip("\n")


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_dry_run_shows_a_script_and_writes_nothing(folder: Path) -> None:
    options = ["--time", "2:00:00", "-p", "gpu", "--mem", "8G", "--at-once", "4", "--setup", "module load cuda"]
    done = submit(*options, "--sbatch=--exclusive", "--dry-run", "--", "-m", "seed=range(12)", "run_dir='a b%'")
    assert done.exit_code == 0, done.output
    assert list(folder.iterdir()) == []
    assert directives(done.stdout) == {
        "job-name": "a-b%",
        "array": "0-11%4",
        "partition": "gpu",
        "time": "2:00:00",
        "mem": "8G",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": "2",
        "signal": "B:USR1@120",
        "open-mode": "append",
        "output": f'"{folder}/a b%%/jobs/slurm-%A_%a.txt"',
        "requeue": "",
        "exclusive": "",
    }
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[-3:-1] == [f"cd {folder} || exit 1", "module load cuda"]
    assert lines[-1].startswith("exec ")
    assert lines[-1].endswith(f""" -m rlx job '{folder}/a b%' "$SLURM_ARRAY_TASK_ID" --requeue""")
    assert subprocess.run(["/bin/bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_quotation_marks_in_a_directory_are_none_of_sbatch(folder: Path) -> None:
    done = submit("--dry-run", "--", r"""run_dir='it\'s "a#b"'""")
    asked = directives(done.stdout)
    assert asked["job-name"] == "it-s--a-b-"
    assert asked["output"] == rf'''"{folder}/it's \"a#b\"/jobs/slurm-%j.txt"'''


def test_run_alone_has_a_script_in_its_own_directory(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    done = submit("--", "algo=ppo", "run_dir=first")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "submitted 1 job as 7: first/jobs/submit-1.sh"
    script = folder / "first/jobs/submit-1.sh"
    assert script.read_text().splitlines()[-1].endswith(f" -m rlx job {folder}/first 0 --requeue")
    assert "array" not in directives(script.read_text())
    assert script.stat().st_mode & stat.S_IXUSR
    assert Sweep("first").plan().submissions[0].jobs == {-1: 0}


def test_run_without_a_directory_gets_one_of_its_environment_and_algorithm(sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    found = json.loads(submit("--json", "--", "algo=a2c", "env=Acrobot").stdout)
    assert found["run_dir"].startswith("runs/Acrobot/a2c/")
    assert found["slurm_jobs"] == {"0": "7"}


def test_cores_are_those_that_the_jobs_need(sbatch: SbatchSays) -> None:
    sweep = ["--dry-run", "--", "-m", "batcher.num_workers=2,5", "seed=0,1"]
    assert directives(submit(*sweep).stdout)["cpus-per-task"] == "5"
    assert directives(submit("--dry-run", "--", "num_threads=3").stdout)["cpus-per-task"] == "3"
    assert (
        directives(submit("--dry-run", "--", "batcher=local", "batcher.num_workers=3").stdout)["cpus-per-task"] == "1"
    )
    few = submit("-c", "3", *sweep)
    assert directives(few.stdout)["cpus-per-task"] == "3"
    assert "--cpus 3: jobs have up to 5 workers" in few.stderr
    assert directives(submit("-c", "3", "--dry-run", "--", "batcher.num_workers=auto").stdout)["cpus-per-task"] == "3"


def test_members_of_a_group_are_submitted_by_a_pattern() -> None:
    done = submit("--dry-run", "--", "-m", "algo=glob(*,exclude=[sac,diayn,h*,*q*,r*])", "seed=0,1")
    assert directives(done.stdout)["array"] == "0-3"


def test_job_finds_members_in_further_places(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    (folder / "found/experiment").mkdir(parents=True)
    (folder / "found/experiment/tiny.yaml").write_text("# @package _global_\ntotal_steps: 64\n")
    done = submit("--", "hydra.searchpath=[found]", "experiment=tiny", "run_dir=here")
    assert done.exit_code == 0, done.output
    assert Sweep("here").plan().flags == [f"hydra.searchpath=['file://{folder}/found']"]


def test_what_an_experiment_sweeps_over_is_submitted(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    own = folder / "own/experiment/swept.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '1,2', algo.gamma: 'choice(0.9,0.99)'}}}\n")
    done = submit("--config-dir", "own", "--", "-m", "experiment=swept", "run_dir=here")
    assert done.exit_code == 0, done.output
    assert Sweep("here").plan().jobs == [
        [f"seed={seed}", f"algo.gamma={gamma}", "experiment=swept"] for seed in (1, 2) for gamma in (0.9, 0.99)
    ]


def test_cluster_of_ones_own_is_laid_over_the_defaults(folder: Path) -> None:
    own = folder / "own/slurm/lab.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("partition: lab\nsetup: [module load a]\ngpus: 1\n")
    done = submit(
        "--config-dir", "own", "--cluster", "lab", "--setup", "module load b", "--dry-run", "--", "device=cuda"
    )
    asked = directives(done.stdout)
    assert (asked["partition"], asked["gpus-per-node"], asked["time"]) == ("lab", "1", "4:00:00")
    assert done.stdout.splitlines()[-3:-1] == ["module load a", "module load b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "algo=ppoo"], "algo=ppoo: there is no 'ppoo' in the group 'algo'. Did you mean 'ppo'?"),
        (["--", "-m", "sed=1,2"], "sed=1,2: there is no key 'sed'."),
        (["--", "-m", "seed=range(0)"], "seed=range(0): this is no value at all"),
        (["--", "-m", "seed=1,2", "run_dir=a,b"], "run_dir=a,b: expected one directory"),
        (["--", "-m", "seed=1,2", "run_dir=a_${seed}"], "run_dir=a_${seed}: it depends on seed, of which there are"),
        (["--", "run_dir=a,b"], "run_dir: got several values"),
        (["--", "seed=1,2"], "seed: got several values"),
        (["--", "env=gym"], "env.id: a value is needed"),
        (["--", "-m", "hydra/launcher=joblib"], "hydra/launcher=joblib: SLURM launches the jobs of rlx submit"),
        (["--", "resume=runs/a"], "resume=runs/a: rlx submit goes on with what it began itself"),
        (["--", "--cfg", "job"], "--cfg: rlx submit takes KEY=VALUE, -m and --config-dir only"),
        (["--", "tune=ppo", "run_dir=here"], "tune=ppo: a search space is for rlx tune"),
        (["--", "device=cuda"], "device=cuda, but SLURM is asked for no GPU: --gpus 1, or device=cpu"),
        (["--", "batcher.num_workers=auto"], "batcher.num_workers=auto takes as many workers as there are cores"),
        (["--time", "3", "--", "seed=1"], "slurm.time: got '3', but a job saves 120 s before its limit"),
        (["--time", "soon", "--", "seed=1"], "slurm.time: got 'soon', expected minutes"),
        (["--partition", "a b", "--", "seed=1"], "slurm.partition: got 'a b', expected a word"),
        (["--sbatch=--array=1", "--", "seed=1"], "--sbatch: rlx submit writes --array itself"),
        (["--sbatch=--output x", "--", "seed=1"], "--sbatch: rlx submit writes --output itself"),
        (["--sbatch=--wait", "--", "seed=1"], "--sbatch: --wait: rlx submit hands a job over and returns"),
        (["--sbatch=--test-only", "--", "seed=1"], "--sbatch: --test-only: rlx submit hands a job over and returns"),
        (["--sbatch=-N2", "--", "seed=1"], "--sbatch: got '-N2', expected a long option"),
        (["--cluster", "defult", "--", "seed=1"], "--cluster: there is no 'defult'. Did you mean 'default'?"),
        (["--", "run_dir=/proc/none"], "run_dir: cannot write '/proc/none/jobs'"),
        (["--", "run_dir=/etc/passwd"], "run_dir: '/etc/passwd' is no folder"),
        (["--", "seed=1"], "sbatch: there is no such program here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder: Path, arguments: list[str], message: str) -> None:
    assert refused(*arguments).startswith(message)
    assert not any(folder.glob("runs/*/*/*"))


def test_unknown_key_of_a_cluster_is_told(folder: Path) -> None:
    own = folder / "own/slurm/lab.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("partitoin: lab\n")
    assert "slurm.partition" in refused("--config-dir", "own", "--cluster", "lab", "--", "seed=1")


def test_folder_that_everybody_may_write_is_refused(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    assert refused("--", "run_dir=open").startswith("run_dir: 'open' can be written by everybody")
    assert list((folder / "open").iterdir()) == []


def test_directory_that_holds_something_else_is_refused(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    (folder / "here").mkdir()
    (folder / "here/notes.txt").touch()
    assert "holds something else (notes.txt)" in refused("--", "run_dir=here")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("sbatch: error: invalid partition specified: mian",
         "sbatch: there is no partition 'mian'. Did you mean 'main'?"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         "sbatch: Batch job submission failed: Invalid account or account/partition combination specified; --account"),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)",
         "sbatch: Batch job submission failed: Job violates accounting/QOS policy (job submit limit); you may not"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
         "sbatch: SLURM's controller does not answer"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
         "sbatch: Batch job submission failed: Requested node configuration is not available; no node"),
        ("something new", "sbatch: something new"),
    ],
)  # fmt: skip
def test_refusal_of_slurm_is_one_line(folder: Path, sbatch: SbatchSays, said: str, message: str) -> None:
    sbatch(f"echo '{said}' >&2; exit 1")
    sbatch("echo main; echo high", "sinfo")
    assert refused("--", "seed=1").startswith(message)
    assert not any(folder.glob("runs/*/*/*"))


def test_full_queue_is_not_waited_for(sbatch: SbatchSays) -> None:
    sbatch("echo 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.' >&2; exec sleep 600")
    assert refused("--", "seed=1").startswith("sbatch: the queue is full")


def test_sweep_submitted_by_half_says_so_and_the_next_call_goes_on(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("case $2 in *submit-3.sh) echo 'sbatch: error: no' >&2; exit 1;; *) echo 1${2//[^0-9]/};; esac")
    sbatch("exit 0", "squeue")
    asked = ["--array-size", "4", "--", "-m", "seed=range(12)", "run_dir=here"]
    text = refused(*asked)
    assert text.endswith(
        "(jobs submitted: 4 as 11, 4 as 12; not submitted: 4; the same command with run_dir=here goes on)"
    )
    plan = Sweep("here").plan()
    assert [one.jobs for one in plan.submissions] == [{k: k for k in range(4)}, {k: k + 4 for k in range(4)}]
    assert '"$SLURM_ARRAY_TASK_ID"' in (folder / "here/jobs/submit-1.sh").read_text()
    assert "$((SLURM_ARRAY_TASK_ID + 4))" in (folder / "here/jobs/submit-2.sh").read_text()
    sbatch("".join(f"echo '11|{task}|PENDING'; echo '12|{task}|RUNNING'\n" for task in range(4)), "squeue")
    sbatch("echo 20")
    done = submit(*asked)
    assert done.exit_code == 0, done.output
    assert done.stderr == "8 jobs are in the queue already\n"
    assert Sweep("here").plan().submissions[-1].jobs == {k: k + 8 for k in range(4)}


def test_jobs_that_are_done_are_not_submitted_again(sbatch: SbatchSays) -> None:
    sbatch("echo 7")
    sweep = Sweep("here")
    sweep.ask([[f"seed={seed}"] for seed in range(4)])
    sweep.finish(sweep.job(2))
    with sweep.hold(3):
        done = submit("--json", "--", "-m", "seed=range(4)", "run_dir=here")
    assert json.loads(done.stdout)["slurm_jobs"] == {"0": "7_0", "1": "7_1"}
    assert done.stderr == "job 2 is done already\njob 3 is run by other processes\n"


def test_jobs_that_slurm_took_and_nobody_could_note_are_told(folder: Path, sbatch: SbatchSays) -> None:
    sbatch("mkdir ${2%/*}/sweep.lock && echo 7")  # which is what cannot be opened then
    done = submit("--", "-m", "seed=range(3)")
    assert done.exit_code == 1, done.stderr
    (directory,) = Path("runs/multirun").iterdir()
    assert done.stderr.startswith(
        f"Error: SLURM has taken 3 jobs as 7, but cannot note that in '{directory}/jobs': Is a"
    )
    assert "scancel 7" in done.stderr
    assert (directory / "jobs/submit-1.sh").is_file()
