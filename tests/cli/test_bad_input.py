"""Whatever is typed wrong gets one line that names it, and nothing is started or written."""

from pathlib import Path

import pytest

from rlx.cli.start import run_train

from .conftest import Launches
from .test_commands import call


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    with pytest.raises(SystemExit) as end:
        run_train(arguments)
    assert end.value.code == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err.removeprefix("Error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "beginning", "nearest"),
    [
        (["algo.gama=0.9"], "algo.gama=0.9: there is no key 'algo.gama'.", "algo.gamma"),
        (["alog.gamma=0.9"], "alog.gamma=0.9: there is no key 'alog.gamma'.", "algo.gamma"),
        (["gamma=0.9"], "gamma=0.9: there is no key 'gamma'.", "algo.gamma"),
        (["totalsteps=1"], "totalsteps=1: there is no key 'totalsteps'.", "total_steps"),
        (["algoo=ppo"], "algoo=ppo: there is no key 'algoo'.", "algo"),
        (["algo=ppoo"], "algo=ppoo: there is no 'ppoo' in the group 'algo'.", "ppo"),
        (["env=cartpole"], "env=cartpole: there is no 'cartpole' in the group 'env'.", "CartPole"),
        (["env/CartPole=x"], "env/CartPole=x: there is no group 'env/CartPole'.", None),
        (["algo.gamma.x=1"], "algo.gamma.x=1: there is no key 'algo.gamma.x'.", "algo.gamma"),
        (["~algo.gama"], "~algo.gama: there is no such key to take away.", "algo.gamma"),
        (["+seed=1"], "+seed=1: the key exists already; write it without the +", None),
        (["hydra.run.dirr=x"], "hydra.run.dirr=x: there is no key 'hydra.run.dirr'.", "hydra.run.dir"),
        (["ppo"], "ppo: expected KEY=VALUE or GROUP=MEMBER", "algo=ppo"),
        (["algo.gamma=[1"], "algo.gamma=[1: this is no override", None),
        (["run_dir=a=b"], "run_dir=a=b: this is no override", None),
        (["seed=1,2"], "seed: got several values, 1,2; add -m for one run each", None),
        (["-m", "seed=1,2", "algo=ppo,dqq"], "algo=ppo,dqq: there is no 'dqq' in the group 'algo'.", None),
        (["-m", "sed=1,2"], "sed=1,2: there is no key 'sed'.", "seed"),
        (["tune=ppo"], "tune=ppo: a search space is for rlx tune", None),
        (["env=gym"], "env.id: a value is needed, give it as env.id=VALUE", None),
        (["seed=${nowhere}"], "seed: Interpolation key 'nowhere' not found", None),
        (["--seed", "3"], "--seed: there is no such flag. Keys take no dashes: seed=VALUE.", None),
        (["--total-steps=3"], "--total-steps=3: there is no such flag. Keys take no dashes: total_steps=VALUE.", None),
        (["env=null"], "env=null: got null, expected a member of the group 'env': ", None),
        (["algo=3"], "algo=3: there is no '3' in the group 'algo'.", None),
        (["slurm=default"], "slurm=default: this is for rlx submit, as --cluster NAME", None),
        (
            ["slurm.partion=x"],
            "slurm.partion=x: this is for rlx submit, as --cluster NAME, or as options such as",
            None,
        ),
        (["algo=a2c", "algo.batch_size=3"], "algo.batch_size=3: there is no key 'algo.batch_size'. Keys of algo", None),
        (["resume=a", "resume=b"], "resume=b: one run is resumed at a time, got 'a' as well", None),
        (["resume=a", "--config-dir"], "--config-dir: expected a directory, got nothing", None),
        (["-m", "algo=ppo,a2c", "--cfg", "job"], "--cfg: shows the configuration of one run; leave out -m", None),
        (["resume="], "resume: got nothing, expected a directory, or null", None),
        (["run_dir=", "seed=3"], "run_dir: got nothing, expected a directory, or null", None),
        (["--multirn"], "--multirn: there is no such flag.", "--multirun"),
        (["--cfg", "jobb"], "argument --cfg/-c: invalid choice: 'jobb'", None),
        (["--config-dir", "nowhere"], "--config-dir: there is no directory 'nowhere'", None),
        (["-cn", "confg"], "--config-name: there is no configuration 'confg'.", "config"),
    ],
)
def test_message_names_what_was_typed_and_the_nearest_right_name(
    launches: Launches, capsys: pytest.CaptureFixture[str], arguments: list[str], beginning: str, nearest: str | None
) -> None:
    text = fails(capsys, *arguments)
    assert text.startswith(beginning)
    assert nearest is None or f"Did you mean '{nearest}'?" in text
    assert launches == []
    assert list(Path.cwd().iterdir()) == []


def test_mapping_where_a_list_stands_is_told_what_stands_there(
    launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fails(capsys, "algo.learning_rate={linear: [1e-3, 0]}")
    assert text.endswith("got a mapping, expected a value or a list as in algo.learning_rate=[linear, 0.001, 0]")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("env.kwargs=[]", "got a list, expected a mapping as in env.kwargs={NAME: VALUE}"),
        ("agent.members=[]", "got a list, expected a mapping as in agent.members={first: ..., second: ...}"),
        ("algo.learning_rate=[linear,1e-3,0,{null:1}]", "a name in a mapping is null, expected text or a number"),
    ],
)
def test_list_where_a_mapping_stands_and_a_name_that_is_null_are_told(
    launches: Launches, capsys: pytest.CaptureFixture[str], typed: str, expected: str
) -> None:
    assert fails(capsys, "agent=population", typed) == f"{typed}: {expected}"


@pytest.mark.parametrize("value", ["käse", "~/runs", "a#b"])
def test_value_that_needs_quotes_is_told_so_and_taken_with_them(
    launches: Launches, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    told = (
        "with anything but letters of ASCII, digits and / - _ + . % * @ ? | needs quotes of its own inside the shell's"
    )
    assert told in fails(capsys, f"run_dir={value}")
    run_train([f"run_dir='{value}'"])
    assert launches[0]["run_dir"] == value


def test_a_working_directory_that_is_gone_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert fails(capsys, "batcher=local", "seed=3") == "the working directory is gone; go to one that is there"


def test_unknown_key_of_a_mapping_says_how_to_add_one(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "env.kwargs.foo=1").endswith("To add one: +env.kwargs.foo=1")


def test_wrong_default_in_a_users_recipe_is_named(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("own/experiment/mine.yaml")
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\ndefaults:\n  - override /env: CartPol\n")
    text = fails(capsys, "experiment=mine", "--config-dir", "own")
    assert "there is no 'env/CartPol'. Did you mean 'CartPole'?" in text


def test_users_yaml_that_is_no_text_is_named(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/algo").mkdir(parents=True)
    Path("conf/algo/mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert fails(capsys, "--config-dir", "conf", "algo=mine").endswith("conf/algo/mine.yaml: this is not UTF-8 text")
    assert call("list", "algos", "--config-dir", "conf") == 2
    assert "mine.yaml: this is not valid YAML" in capsys.readouterr().err


def test_users_yaml_that_is_none_is_named_with_its_line(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path("own/algo/mine.yaml")
    broken.parent.mkdir(parents=True)
    broken.write_text("gamma: [1\nlearning_rate: }\n")
    text = fails(capsys, "algo=mine", "--config-dir", "own")
    assert "mine.yaml, line 2: this is not valid YAML" in text


@pytest.mark.parametrize(
    ("words", "named", "fits"),
    [
        ("algo=dqn env=Pendulum", "continuous [1]", "algo=sac, ppo or a2c"),
        ("algo=sac env=CartPole", "discrete []", "algo=dqn, ppo or a2c"),
        ("algo=diayn env=CartPole", "discrete []", "algo=dqn, ppo or a2c"),
        ("algo=dqn agent=gru", "GRUActorCritic", "agent=q_network"),
        ("algo=ppo agent=q_network", "QNetwork", "log_prob() and entropy()"),
        ("algo=sac env=Pendulum agent=actor_critic", "ActorCritic", "agent=soft_actor_critic"),
        ("algo=diayn env=Pendulum agent=soft_actor_critic", "SoftActorCritic", "agent=skills"),
        ("algo=dqn algo.burn_in_steps=5", "algo.burn_in_steps: got 5", "agent=recurrent_q_network"),
        ("algo=sac env=Pendulum algo.sequence_length=5", "algo.sequence_length: got 5", "recurrent_soft_actor_critic"),
        ("algo=reinforce batcher=process", "batcher: ", "batcher=episodes"),
        ("algo.learning_rate=[linaer,1e-3,0]", "algo.learning_rate: there is no schedule 'linaer'", "'linear'"),
        (
            "algo.clip_coef=[cosine,-1,0]",
            "algo.clip_coef: expected a number or a schedule",
            "> 0, got ['cosine', -1, 0]",
        ),
        ("algo=dqn algo.epsilon=[linear,1,2]", "algo.epsilon: expected a number or a schedule", "in [0, 1]"),
        ("algo=dqn +algo.epsilon_start=1", "algo.epsilon_start: there is no such key.", "algo.epsilon"),
        ("precision=bfloat61", "precision: expected one of 'float32', 'tf32', 'bfloat16'", "Did you mean 'bfloat16'?"),
        ("compile=yes", "compile: expected true or false", "got 'yes'"),
        ("compile=true algo=a2c", "compile: rlx.algo.a2c cannot be compiled, since", "compile=false"),
        ("compile=true algo=reinforce", "compile: rlx.algo.reinforce cannot be compiled, since", "compile=false"),
        ("compile=true algo=sac env=Pendulum", "compile: rlx.algo.sac cannot be compiled, since", "compile=false"),
        ("compile=true algo=diayn env=Pendulum", "compile: rlx.algo.diayn cannot be compiled", "compile=false"),
        ("compile=true agent=gru", "compile: GRUActorCritic has a memory", "compile=false"),
        ("agent=conv", "obs torch.float32 [4]", "agent=actor_critic"),
        ("~checkpoint", "checkpoint: expected a mapping of names to values", "got null"),
        ("~evaluation", "evaluation: expected a mapping of names to values", "got null"),
        ("~env", "env: got None, expected a member of conf/env", "env=NAME"),
        ("~agent", "agent: got None, expected a member of conf/agent", "agent=NAME"),
        ("~batcher", "batcher: got None, expected a member of conf/batcher", "batcher=NAME"),
        ("~logger.every", "logger.every: no value given", "an integer >= 0"),
        ("~num_threads", "num_threads: no value given", "an integer in [1, 4096]"),
        ("num_threads=1e5", "num_threads: expected an integer in [1, 4096]", "got 100000"),
        (
            "batcher=local algo.num_steps=1e12",
            "1,000,000,000,000 steps of 16 environments takes",
            "lower algo.num_steps",
        ),
        ("batcher=local algo.num_steps=1e18", "steps of 16 environments takes", "lower algo.num_steps"),
        ("batcher=local algo=dqn algo.n_step=17 algo.buffer_size=256", "algo.n_step: got 17", "holds 16"),
        ("batcher=local algo=sac env=Pendulum algo.n_step=9 algo.buffer_size=128", "algo.n_step: got 9", "holds 8 "),
        (
            "batcher=local algo=dqn agent=recurrent_q_network algo.sequence_length=7 algo.buffer_size=256",
            "algo.sequence_length and algo.burn_in_steps: got 17",
            "holds 16 steps of each of 16 environments: raise algo.buffer_size",
        ),
        (
            "batcher=local algo=dqn algo.num_steps=20 algo.buffer_size=256",
            "a piece takes 20 slots",
            "raise algo.buffer",
        ),
        ("algo.num_steps=1e30", "algo.num_steps: expected an integer >= 1, got 1e+30.", "at most 2^63 - 1"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_would(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, named: str, fits: str
) -> None:
    run = tmp_path / "run"
    text = fails(capsys, *words.split(), f"run_dir={run}")
    assert named in text
    assert fits in text
    assert not run.exists()
