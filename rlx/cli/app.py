"""The commands and their options.

Everything heavy (torch, Hydra, Gymnasium) is imported inside the command that needs it, and help is plain text without
rich, so that `rlx --help` answers at once.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import rlx
from rlx.cli.complete import complete_override
from rlx.cli.report import only_json_on_stdout, reported_errors
from rlx.cli.results import AgentInfo, results
from rlx.cli.start import run_train
from rlx.cli.submit import cluster
from rlx.cli.tune import tuning

_SETTINGS = {"help_option_names": ["-h", "--help"]}
# Flags, --help included, go to Hydra as they stand.
_HYDRA_SETTINGS: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

app = typer.Typer(
    name="rlx",
    help="Train and evaluate reinforcement-learning agents: rlx train algo=ppo env=CartPole",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)
bench = typer.Typer(
    help="Measure how fast this machine does what training is made of.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)
app.add_typer(bench, name="bench")
app.add_typer(results)
app.add_typer(cluster)
app.add_typer(tuning)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", help="A configuration directory of your own, laid over rlx's.", file_okay=False),
]


class Kind(StrEnum):
    """What `rlx list` can list; the value is also the configuration group's plural."""

    envs = "envs"
    algos = "algos"
    agents = "agents"
    batchers = "batchers"
    learners = "learners"
    loggers = "loggers"
    experiments = "experiments"


class Render(StrEnum):
    """How `rlx eval` can show episodes."""

    human = "human"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlx {rlx.__version__}")
        raise typer.Exit()


@app.callback()
def rlx_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before any command."""


@app.command(context_settings=_HYDRA_SETTINGS, add_help_option=False)
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="GROUP=MEMBER, KEY=VALUE and flags.", autocompletion=complete_override),
    ] = None,
) -> None:
    """Train a policy: rlx train algo=ppo env=CartPole (rlx train --help: all keys)."""
    run_train(overrides or [])


@app.command("eval")
def evaluate(
    paths: Annotated[list[Path], typer.Argument(help="Run directories (their newest checkpoint) and checkpoints.")],
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="Exactly this many whole episodes.  [default: 100; of those to be seen 1]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Where the environments' and the agent's seeds grow from.")] = 0,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Sample actions; else the best one.")] = False,
    agent_info: AgentInfo = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import the code that the checkpoint names, whatever it is.")
    ] = False,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="Every checkpoint of each run: a curve.")
    ] = False,
    max_episode_steps: Annotated[
        int | None, typer.Option(min=1, help="End each episode after so many steps.  [default: as trained]")
    ] = None,
    video: Annotated[
        Path | None, typer.Option("--video", help="Record each episode: a file .mp4, or a folder of them.")
    ] = None,
    render: Annotated[Render | None, typer.Option("--render", help="Show each episode in a window.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write one row an episode to this file.")] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Play whole episodes with trained policies: rlx eval runs/CartPole/ppo/..."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        if trust or config_dir is not None:
            from rlx.cli.members import see_own_code

            see_own_code()
        from rlx.tools.evaluate import evaluate_paths, shares_of

        options: dict[str, Any] = {"stochastic": stochastic, "trust": trust, "config_dir": config_dir}
        options |= {"agent_info": agent_info or [], "max_episode_steps": max_episode_steps}
        found = evaluate_paths(
            paths,
            all_checkpoints=all_checkpoints,
            csv_path=csv,
            video=video,
            human=render is not None,
            episodes=episodes or (1 if video or render else 100),
            seed=seed,
            **options,
        )
        if as_json:
            emit(json.dumps(found[0] if len(paths) == 1 and not all_checkpoints else {"evaluations": found}))
            return
        for values in found:
            if len(found) > 1:
                emit(f"{values['path']}, {values['env_steps']:,} steps:")
            lengths, (low, high) = values["lengths"], values["interval"]
            emit(
                f"return {values['mean']:.2f} ± {values['std']:.2f} over {values['episodes']} episodes "
                f"(least {min(values['returns']):.2f}, greatest {max(values['returns']):.2f}, "
                f"mean length {sum(lengths) / len(lengths):.1f})"
            )
            emit(
                f"  mean within {low:.2f} to {high:.2f} (95 % bootstrap), median {values['median']:.2f}, "
                f"interquartile mean {values['iqm']:.2f}"
            )
            for line in shares_of(values):
                emit(f"  {line}")
            for file in values.get("videos", ()):
                emit(file)


@bench.command("collect")
def bench_collect(
    env: Annotated[str, typer.Option(help="The environment's id.")] = "CartPole-v1",
    num_workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    envs_per_worker: Annotated[int, typer.Option(min=1, help="Environments in each.")] = 4,
    num_steps: Annotated[int, typer.Option(min=1, help="Steps of each environment a call.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each of the two is measured.")] = 5.0,
    vectorization: Annotated[str, typer.Option(help="per_instance or native.")] = "per_instance",
    scaling: Annotated[bool, typer.Option("--scaling", help="Compare with one worker, too.")] = False,
    checks: Annotated[bool, typer.Option("--checks", help="Measure what the checks of numbers cost, too.")] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Compare with actors of Ray, too: local, auto or host:port.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure collection: rlx's steps per second, and those of a hand-written loop with the same work."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.tools.bench import bench_collect as measure

        values: dict[str, Any] = measure(
            env=env,
            num_workers=num_workers,
            envs_per_worker=envs_per_worker,
            num_steps=num_steps,
            seconds=seconds,
            vectorization=vectorization,
            scaling=scaling,
            checks=checks,
            ray=ray,
        )
        if as_json:
            emit(json.dumps(values))
        else:
            values |= {f"shared_bytes {key}": value for key, value in values.pop("shared_bytes_of").items()}
            _table(values, emit)


@bench.command("adapter")
def bench_adapter(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="env=MEMBER and env.KEY=VALUE.", autocompletion=complete_override),
    ] = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments.")] = 8,
    num_steps: Annotated[int, typer.Option(min=1, help="Steps of each environment a piece.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each of the two is measured.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Measure an environment in rlx and bare, without a policy: rlx bench adapter env=Pong env.num_threads=2."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.cli.train import compose_env
        from rlx.run.build import maker
        from rlx.tools.adapter import bench_adapter as measure

        make_env = maker("env", compose_env(overrides or []))
        values = measure(make_env, num_envs=num_envs, num_steps=num_steps, seconds=seconds)
        if as_json:
            emit(json.dumps(values))
        else:
            _table(values, emit)


@bench.command("start")
def bench_start(
    env: Annotated[str, typer.Option(help="The environment's id.")] = "CartPole-v1",
    num_workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    envs_per_worker: Annotated[int, typer.Option(min=1, help="Environments in each.")] = 4,
    times: Annotated[int, typer.Option(min=1, help="Programs to start; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure starting: seconds to the first experience and to the end, and the memory of a worker."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.tools.startup import bench_start as measure

        values = measure(env=env, num_workers=num_workers, envs_per_worker=envs_per_worker, times=times)
        if as_json:
            emit(json.dumps(values))
        else:
            _table(values, emit)


def _table(values: dict[str, Any], emit: Callable[[str], None]) -> None:
    width = max(len(key) for key in values)
    for key, value in values.items():
        emit(f"{key:<{width}}  {value:,.3f}" if isinstance(value, float) else f"{key:<{width}}  {value}")


@app.command("list")
def list_members(
    kind: Annotated[Kind, typer.Argument(help="What to list.", case_sensitive=False)],
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """List what can be named: rlx list envs."""
    with reported_errors(), only_json_on_stdout(as_json) as emit:
        from rlx.cli.members import group_members

        group = kind.value.removesuffix("s")
        members = group_members(group, config_dir)
        ids: list[str] = []
        if kind is Kind.envs:
            from rlx.env import list_ids

            ids = list(list_ids())
        if as_json:
            listing: dict[str, Any] = {kind.value: [member.to_dict() for member in members]}
            emit(json.dumps(listing | ({"ids": ids} if kind is Kind.envs else {})))
            return
        width = max((len(member.name) for member in members), default=0)
        for member in members:
            emit(f"{group}={member.name:<{width}}  {member.about}")
        if ids:
            emit("\nRegistered with Gymnasium; each by its id: env=gym env.id=ID")
            for name in ids:
                emit(f"  {name}")
