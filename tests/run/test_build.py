"""What `_target_` names, found or refused with the nearest right name."""

from pathlib import Path

import pytest

from rlx.errors import ConfigError
from rlx.run.build import find_target, maker

SMALL = {"activation": "tanh", "log_std_init": 0.0, "normalize_observation": False, "normalize_return": False}


def refused(target: object) -> str:
    with pytest.raises(ConfigError) as caught:
        find_target("algo", {"_target_": target})
    return str(caught.value)


def test_target_that_is_not_given_is_told() -> None:
    with pytest.raises(ConfigError, match="no value given, expected a dotted name"):
        find_target("algo", {"gamma": 1})


def test_target_is_found() -> None:
    from rlx.algo.ppo import train

    assert find_target("algo", {"_target_": "rlx.algo.ppo.train"}) is train


@pytest.mark.parametrize(
    ("target", "beginning", "nearest"),
    [
        ("rlx.algoo.ppo.train", "there is no module 'rlx.algoo'", "rlx.algo.ppo.train"),
        ("rlx.algo.pppo.train", "there is no module 'rlx.algo.pppo'", "rlx.algo.ppo.train"),
        ("rlxx.algo.ppo.train", "there is no module 'rlxx'", "rlx.algo.ppo.train"),
        ("rlx.algo.ppo.trian", "'rlx.algo.ppo' has no function or class 'trian'", "train"),
        ("rlx.env.mak", "'rlx.env' has no function or class 'mak'", "make"),
        ("rlx.agent.ActorCritc", "'rlx.agent' has no function or class 'ActorCritc'", "ActorCritic"),
        ("rlx.algo.ppo.__doc__", "'rlx.algo.ppo' has no function or class '__doc__'", None),
        ("rlx.algo.ppo", "'rlx.algo.ppo' is a module, expected a function or a class in one", "rlx.algo.ppo.train"),
        ("rlx.algo.ppo.train.x", "there is no module 'rlx.algo.ppo.train'", None),
        ("zzqqvvkk.train", "there is no module 'zzqqvvkk'", None),
        ("train", "got 'train', expected a dotted name such as 'rlx.algo.ppo.train'", None),
        (".train", "got '.train', expected a dotted name", None),
        ("rlx..ppo.train", "got 'rlx..ppo.train', expected a dotted name", None),
        (None, "got None, expected a dotted name", None),
        (3, "got 3, expected a dotted name", None),
    ],
)
def test_misspelt_target_gets_the_nearest_name(target: object, beginning: str, nearest: str | None) -> None:
    text = refused(target)
    assert text.startswith(f"algo._target_: {beginning}")
    hint = text.partition(" Did you mean ")[2]
    assert hint == ("" if nearest is None else f"'{nearest}'?")


def test_what_a_users_module_lacks_is_not_taken_for_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_here"):
        find_target("algo", {"_target_": "needs_more.train"})


def test_users_own_module_that_is_misspelt_is_found_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithms").mkdir()
    (tmp_path / "my_algorithms" / "dreamer.py").write_text("def train(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused("my_algoritms.dreamer.train").endswith("Did you mean 'my_algorithms.dreamer.train'?")
    assert refused("my_algorithms.dremer.train").endswith("Did you mean 'my_algorithms.dreamer.train'?")


def test_group_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a member of conf/algo"):
        maker("algo", "ppo")


def test_environment_and_agent_that_memory_has_no_room_for_are_refused_by_their_group() -> None:
    make_env = maker("env", {"_target_": "rlx.env.BitFlip", "num_bits": 10**13})
    with pytest.raises(ConfigError, match=r"^env: memory has no room for it \(.*tried to allocate .*batcher.envs_per"):
        make_env(num_envs=2)
    env = maker("env", {"_target_": "rlx.env.BitFlip", "num_bits": 4})(num_envs=2)
    for hidden_sizes in ([10**12], [10**18]):
        make_agent = maker("agent", {"_target_": "rlx.agent.ActorCritic", **SMALL, "hidden_sizes": hidden_sizes})
        with pytest.raises(ConfigError, match=r"^agent: memory has no room for it \(.*; lower its sizes"):
            make_agent(env.specs)


def test_what_is_made_for_an_agent_and_is_none_is_refused() -> None:
    make_agent = maker("agent", {"_target_": "builtins.print"}, given=["values"])
    with pytest.raises(ConfigError, match=r"'print' made a NoneType, expected an rlx\.agent\.Agent"):
        make_agent(None)
