"""What `rlx submit` asks SLURM for: defaults, a cluster's own file, what was typed, and whether all of it fits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from rlx.errors import ConfigError, did_you_mean
from rlx.run.cores import AUTO
from rlx.tools import slurm
from rlx.validate import Range, validate

_OWN = (
    *(
        "--array",
        "--chdir",
        "--cpus-per-task",
        "--error",
        "--job-name",
        "--nodes",
        "--ntasks",
        "--open-mode",
        "--output",
    ),
    *("--parsable", "--requeue", "--no-requeue", "--signal", "--time", "--wrap", "--partition", "--account", "--qos"),
)
"""Options of sbatch that rlx writes itself, or that would break what it relies on."""
_FOREIGN = ("--wait", "--test-only")
"""Options with which sbatch does not answer with the number of a job at once."""
_SLACK_SECONDS = 120
"""SLURM sends its signal up to a minute early, and a job needs some time to start."""


def options(
    *,
    partition: str | None,
    account: str | None,
    qos: str | None,
    constraint: str | None,
    time: str,
    cpus: Annotated[int, Range(1)] | None,
    gpus: Annotated[int, Range(0)],
    mem: str | None,
    at_once: Annotated[int, Range(1)] | None,
    signal_seconds: Annotated[int, Range(10)],
    array_size: Annotated[int, Range(1)],
    setup: list[str],
    options: list[str],
) -> dict[str, Any]:
    """Return the keys of conf/slurm/; the signature is their schema.

    Args:
        partition: where to run.
        account: who pays.
        qos: quality of service.
        constraint: features of the nodes.
        time: limit, as SLURM writes it.
        cpus: cores of each job; None for what its configuration asks for.
        gpus: GPUs of each job.
        mem: memory of each job, such as `8G`.
        at_once: jobs of a sweep that run at once; None for no limit.
        signal_seconds: seconds before the time limit at which a job saves and goes back into the queue.
        array_size: jobs in one array.
        setup: shell lines before Python starts.
        options: further options of sbatch.
    """
    return dict(locals())


def read_options(given: Mapping[str, Any], cluster: str, config_dir: Path | None, directory: Path) -> dict[str, Any]:
    """Return what SLURM is asked for: rlx's defaults, a cluster's file, and what was typed.

    Args:
        given: what was typed, None where it was not.
        cluster: the file's name.
        config_dir: the user's own configuration directory.
        directory: rlx's.

    Raises:
        ConfigError: there is no such file, or something in it is wrong.
    """
    from omegaconf import OmegaConf

    folders = [directory / "slurm", *([config_dir / "slurm"] if config_dir is not None else [])]
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    if cluster not in known:
        raise ConfigError(
            f"--cluster: there is no '{cluster}'.{did_you_mean(cluster, known)} Clusters: {', '.join(known)}."
        )
    values: dict[str, Any] = {}
    for path in (folders[0] / "default.yaml", *(folder / f"{cluster}.yaml" for folder in folders)):
        if path.is_file():
            try:
                values |= cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path), resolve=True) or {})
            except Exception as error:
                raise ConfigError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from error
    for key, value in given.items():
        if isinstance(value, list):
            values[key] = [*values[key], *cast("list[str]", value)]
        elif value is not None:
            values[key] = value
    wanted = validate(options, values, "slurm")
    _check(wanted)
    return wanted


def _check(wanted: Mapping[str, Any]) -> None:
    """Raise ConfigError where options contradict each other, or what rlx does itself."""
    limit = slurm.seconds_of(wanted["time"])
    if limit is None:
        raise ConfigError(f"slurm.time: got '{wanted['time']}', expected minutes, H:MM:SS or D-HH:MM:SS")
    if limit < wanted["signal_seconds"] + _SLACK_SECONDS:
        raise ConfigError(
            f"slurm.time: got '{wanted['time']}', but a job saves {wanted['signal_seconds']} s before its limit "
            f"(slurm.signal_seconds), and SLURM is early by up to a minute: expected at least "
            f"{-(-(wanted['signal_seconds'] + _SLACK_SECONDS) // 60)} minutes"
        )
    for key in ("partition", "account", "qos", "constraint", "mem"):
        if wanted[key] is not None and any(letter.isspace() for letter in wanted[key]):
            raise ConfigError(f"slurm.{key}: got {wanted[key]!r}, expected a word without spaces")
    for option in wanted["options"]:
        name = (option.replace("=", " ").split() or [""])[0]
        if not name.startswith("--") or "\n" in option:
            raise ConfigError(f"--sbatch: got '{option}', expected a long option of sbatch, such as --exclusive")
        if name in _FOREIGN:
            raise ConfigError(f"--sbatch: {name}: rlx submit hands a job over and returns, with its number")
        if name in _OWN:
            raise ConfigError(f"--sbatch: rlx submit writes {name} itself; see rlx submit --help")


def fit(wanted: dict[str, Any], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Set the cores that were left open, and hold what was asked of SLURM against what jobs ask for.

    Args:
        wanted: options; `cpus` is set.
        configs: of the jobs, resolved.

    Returns:
        Warnings.

    Raises:
        ConfigError: a job asks for what it would not be given.
    """
    needs: list[int] = []
    for config in configs:
        batcher = cast("Mapping[str, Any]", config["batcher"])
        workers = batcher.get("num_workers", 1) if batcher.get("workers") == "process" else 1
        if workers == AUTO and wanted["cpus"] is None:
            raise ConfigError(
                "batcher.num_workers=auto takes as many workers as there are cores: say how many, --cpus N"
            )
        needs.append(max(1 if count == AUTO else int(count) for count in (workers, config["num_threads"])))
        generic = any(option.startswith(("--gres", "--gpus")) for option in wanted["options"])
        if str(config["device"]).startswith("cuda") and not wanted["gpus"] and not generic:
            raise ConfigError(f"device={config['device']}, but SLURM is asked for no GPU: --gpus 1, or device=cpu")
    need = max(needs)
    if wanted["cpus"] is None:
        wanted["cpus"] = need
    elif wanted["cpus"] < need:
        return [f"--cpus {wanted['cpus']}: jobs have up to {need} workers or threads, which will wait for each other"]
    return []
