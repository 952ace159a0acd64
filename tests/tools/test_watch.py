"""Episodes that are recorded or shown: those of an evaluation, every frame of them."""

import ctypes.util
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.errors import CheckpointError, ConfigError, EnvironmentFault, MissingPackageError, RlxError, UserError
from rlx.run.evaluate import Evaluator, evaluate_path, kinds_of
from rlx.run.policy import limited, load_policy
from rlx.run.signals import StopRequested
from rlx.seeding import env_seed
from rlx.tools.film import Film
from rlx.tools.screen import drawing_without_screen
from rlx.tools.watch import watch

from ..cli.test_commands import call
from ..program import COMMAND, ROOT, train_here
from .trained import MIXED, Trained, trained_once

SEED = 3
DRAWING = ["env=gym", "env.id=tests.tools.drawing:Drawing-v0"]
KINDS = {
    "cartpole": ["env=CartPole", "env.max_episode_steps=30"],
    "native": ["env=CartPoleVec", "env.max_episode_steps=30"],
    "torch": ["env=CartPoleTorch"],
    "population": ["env=CartPole", "agent=population", "env.max_episode_steps=30"],
    "drawing": [*DRAWING, "env.reward_scale=0.5", "+batcher.env_info.goal={uniform: [0, 9]}"],
    "blind": ["env=gym", "env.id=tests.tools.drawing:Blind-v0"],
    **{wrong: [*DRAWING, f"+env.kwargs.wrong={wrong}"] for wrong in ("none", "float", "size", "GL", "ended")},
    "mixed": MIXED,
    "both": [*MIXED, "agent=population", "batcher.envs_per_worker=4"],
}


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a short run of a kind, trained when it is first asked for."""
    return trained_once(KINDS, tmp_path_factory)


def evaluated(run: Path, episodes: int) -> list[float]:
    policy = load_policy(run, trust=True)
    options: dict[str, Any] = {"episodes": episodes, "seed": SEED, "workers": "local", **policy.samplers}
    with Evaluator(policy.make_agent, policy.make_env, **options) as evaluator:
        return evaluator.play(policy.agent).returns


def frames_of(path: Path, height: int, width: int) -> tuple[np.ndarray, int]:
    """Return the frames `[T, H, W, 3]` of a video of this size, and how many it has a second."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    count, seconds = ffmpeg.count_frames_and_secs(str(path))
    raw = ["-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run([ffmpeg.get_ffmpeg_exe(), *raw], capture_output=True, check=True, timeout=60).stdout
    return np.frombuffer(pixels, np.uint8).reshape(count, height, width, 3), round(count / seconds)


@pytest.mark.parametrize("kind", ["cartpole", "native"])
def test_episodes_are_those_of_an_evaluation_and_every_frame_is_there(
    kind: str, trained: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    seen = watch(trained(kind), video=tmp_path / "new" / "videos", episodes=2, seed=SEED)
    if kind == "cartpole":  # the native one begins each row from a generator that they share
        assert seen.result.returns == evaluated(trained(kind), 2)
    assert [path.name for path in seen.files] == [
        f"seed-{env_seed(SEED, row, evaluation=True)}-return-{value:.2f}.mp4"
        for row, value in enumerate(seen.result.returns)
    ]
    assert sorted(seen.files) == sorted((tmp_path / "new" / "videos").iterdir())
    for path, length in zip(seen.files, seen.result.lengths, strict=True):
        frames, fps = frames_of(path, 400, 600)
        assert len(frames) == length + 1
        assert fps == 50
        assert (frames[0][150:] != frames[-1][150:]).any()  # the cart has moved
        assert frames[0][:30, :100].min() < 120 < frames[0][:30, :100].max()  # white text on dark ground


def test_what_is_drawn_for_an_episode_is_drawn_as_in_an_evaluation(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    seen = watch(trained("drawing"), video=tmp_path, episodes=3, seed=SEED, trust=True)
    assert seen.result.returns == pytest.approx(evaluated(trained("drawing"), 3))
    assert len(set(seen.result.returns)) == 3


def test_each_member_of_a_population_is_seen_in_its_turn_as_in_an_evaluation(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    found = evaluate_path(trained("population"), episodes=3, seed=SEED)
    assert watch(trained("population"), video=tmp_path, episodes=3, seed=SEED).result == found
    assert found.policies == [0, 1, 0]
    second = watch(trained("population"), video=tmp_path, episodes=2, seed=SEED, agent_info=["policy=1"]).result
    assert second.policies == [1, 1]
    assert second.returns[1] == found.returns[1]


def test_signal_ends_a_recording_at_once_and_leaves_nothing_behind(trained: Trained, tmp_path: Path) -> None:
    """SDL takes SIGTERM for itself where nobody else has, and pygame's environments drop what it makes of it."""
    pytest.importorskip("imageio_ffmpeg")
    heard: list[int] = []
    own = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(StopRequested, match="SIGTERM"):
            watch(trained("ended"), video=tmp_path, episodes=2, trust=True)
    finally:
        signal.signal(signal.SIGTERM, own)
    assert not heard
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_frames", [3, 400])  # the first few are written when the file is ended
def test_video_that_the_disk_has_no_room_for_is_an_error_and_the_old_one_stays(num_frames: int, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "episode.mp4"
    path.write_text("old")
    draws = np.random.default_rng(0)
    frames = [draws.integers(0, 256, (240, 240, 3), np.uint8) for _ in range(num_frames)]

    def shoot() -> None:
        with Film(tmp_path, 30) as film:
            for frame in frames:
                film.add(frame, "")
            film.finish(path)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(RlxError, match=r"cannot write .*: ffmpeg ended with status -25$"):
            shoot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"episode.mp4": "old"}


def test_small_pictures_of_odd_sizes_are_enlarged_and_padded(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    seen = watch(trained("drawing"), video=tmp_path / "one.mp4", seed=SEED, trust=True)
    assert seen.files == [tmp_path / "one.mp4"]
    frames, fps = frames_of(tmp_path / "one.mp4", 272, 416)
    assert fps == 7
    assert len(frames) == seen.result.lengths[0] + 1
    assert [round(float(frame[-1, -1].mean()) / 20) for frame in frames] == list(range(len(frames)))


def test_members_of_a_mixed_batch_take_turns(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    result = watch(trained("mixed"), video=tmp_path, episodes=3, seed=SEED).result
    assert (result.lengths, result.environments) == ([5, 7, 5], [0, 1, 0])
    assert result.environment_names == ["CartPole-v1", "CartPole-v1"]
    both = watch(trained("both"), video=tmp_path, episodes=4, seed=SEED).result
    assert (both.environments, both.policies) == ([0, 1, 0, 1], [0, 0, 1, 1])


def test_image_that_the_agent_sees_is_shown_where_nothing_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("imageio_ffmpeg")
    run = tmp_path / "run"
    assert train_here("env=Pong", "agent=conv", "env.max_num_frames_per_episode=80", f"run_dir={run}") == 0
    seen = watch(run, video=tmp_path / "pong.mp4")
    frames, _ = frames_of(tmp_path / "pong.mp4", 252, 252)
    assert len(frames) == seen.result.lengths[0] + 1


def test_window_shows_the_same_episodes(trained: Trained) -> None:
    pytest.importorskip("pygame")
    seen = watch(trained("cartpole"), video=None, seed=SEED)
    assert seen.files == []
    assert seen.result.returns == evaluated(trained("cartpole"), 1)


@pytest.mark.parametrize(
    ("kind", "video", "reason"),
    [
        ("blind", "x.mp4", "Blind-v0' has the render modes ansi; expected rgb_array"),
        ("blind", None, "Blind-v0' has the render modes ansi; expected human"),
        ("torch", "x.mp4", "TorchCartPole' draws no pictures .*render modes: none"),
        ("torch", None, "opens no window"),
    ],
)
def test_environment_that_cannot_draw_is_refused_with_what_it_can(
    kind: str, video: str | None, reason: str, trained: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(UserError, match=reason):
        watch(trained(kind), video=None if video is None else tmp_path / video, trust=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "reason", "kind"),
    [
        ("none", "draws no pictures", UserError),
        ("float", "returned float64", EnvironmentFault),
        ("size", "change their size", EnvironmentFault),
    ],
)
def test_pictures_that_are_none_are_named_and_leave_no_file(
    wrong: str, reason: str, kind: type[RlxError], trained: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(kind, match=reason):
        watch(trained(wrong), video=tmp_path, trust=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take away all that tells of a screen, or of how MuJoCo is to draw."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_drawing_that_fails_for_want_of_a_screen_is_one_line_that_says_what_helps(
    trained: Trained, tmp_path: Path, no_screen: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    no_screen.setenv("MUJOCO_GL", "glfw")
    run = str(trained("GL"))
    assert call("eval", run, "--video", str(tmp_path / "x"), "--trust") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "Error: 'tests.tools.drawing:Drawing-v0' cannot draw here, without a screen and with MUJOCO_GL=glfw: "
        "RuntimeError: could not create a GLX context. Without a screen, MuJoCo needs MUJOCO_GL=egl and libEGL"
    )


def test_a_window_without_a_screen_is_refused(
    trained: Trained, no_screen: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("eval", str(trained("cartpole")), "--render", "human") == 2
    assert "there is no screen here" in capfd.readouterr().err


def test_mujoco_is_told_of_egl_only_where_nothing_else_is_said(no_screen: pytest.MonkeyPatch) -> None:
    pytest.importorskip("OpenGL")
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("there is no libEGL")

    def chosen() -> str | None:
        with drawing_without_screen():
            return os.environ.get("MUJOCO_GL")

    assert chosen() == "egl"
    assert "MUJOCO_GL" not in os.environ
    for name, value, expected in (
        ("MUJOCO_GL", "osmesa", "osmesa"),
        ("PYOPENGL_PLATFORM", "glx", None),
        ("DISPLAY", ":0", None),
    ):
        no_screen.setenv(name, value)
        assert chosen() == expected
        assert os.environ.get(name) == value
        no_screen.delenv(name)


def test_mujoco_draws_without_a_screen(tmp_path: Path, no_screen: pytest.MonkeyPatch) -> None:
    for package in ("mujoco", "OpenGL", "imageio_ffmpeg"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("there is no libEGL")
    run = tmp_path / "run"
    assert train_here("env=HalfCheetah", "env.max_episode_steps=3", f"run_dir={run}") == 0
    command = [*COMMAND, "eval", str(run), "--video", "x.mp4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    frames, _ = frames_of(tmp_path / "x.mp4", 480, 480)
    assert len(frames) == 4
    assert frames[0].std() > 1, "a picture, and not one colour"


def test_code_that_a_checkpoint_names_is_not_run_untrusted(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--trust"):
        watch(trained("drawing"), video=tmp_path)


def test_missing_package_is_named_with_its_extra(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingPackageError, match=r"needs imageio-ffmpeg, .* pip install 'rlx\[video\]'"):
        watch(trained("cartpole"), video=tmp_path / "videos")
    assert list(tmp_path.iterdir()) == []


def test_command_lists_its_files_and_refuses_what_makes_no_sense(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.chdir(tmp_path)
    run = str(trained("cartpole"))
    (tmp_path / "file").touch()
    for arguments, fragment in (
        (["--video", "x.gif"], "got '.gif', expected a file .mp4, or a folder"),
        (["--video", "x.mp4", "--episodes", "2"], "one file for 2 episodes, expected a folder: --video 'x'"),
        (["--video", "no/x.mp4"], "there is no folder 'no'"),
        (["--video", "file"], "cannot make the folder 'file'"),
        (["--render", "window"], "'human'"),
        (["--render", "human", "--video", "x"], "expected one of them"),
        ([run, "--video", "x"], "got 2 policies, expected one at a time"),
        (["--max-episode-steps", "0"], "--max-episode-steps"),
    ):
        assert call("eval", run, *arguments) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert fragment in err
        assert "Traceback" not in err
    assert call("eval", run, "--video", "x", "--episodes", "2") == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("return ")
    assert sorted(out[-2:]) == sorted(str(path) for path in Path("x").iterdir())
    assert call("eval", run, "--video", "y.mp4", "--json", "--max-episode-steps", "3") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["videos"] == ["y.mp4"]
    assert told["lengths"] == [3]


def test_members_of_ones_own_environment_are_its_own() -> None:
    own = {"_target_": "rlx.env.PointReach", "members": 3}  # such a key may mean anything
    assert kinds_of(own) == []
    assert limited(own, 4) == {**own, "max_episode_steps": 4}


def test_a_limit_of_steps_reaches_each_kind_of_environment(trained: Trained) -> None:
    for kind in ("torch", "mixed"):
        found = evaluate_path(trained(kind), episodes=2, max_episode_steps=4, trust=True)
        assert found.lengths == [4, 4]
    policy = load_policy(trained("cartpole"))
    with pytest.raises(ConfigError, match=r"--max-episode-steps: rlx.env.make_atari takes no env.max_episode_steps"):
        limited({**policy.env, "_target_": "rlx.env.make_atari"}, 4)
