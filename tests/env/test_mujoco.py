"""What MuJoCo's environments do besides stepping: warn."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rlx.env import make

pytest.importorskip("mujoco")


def test_warnings_are_told_once_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlx.env.mujoco_warnings._told", set())
    with make("HalfCheetah-v5", 2) as env, caplog.at_level(logging.WARNING):
        out = env.allocate()
        env.reset(out, seeds=[0, 1])
        assert not caplog.records  # of what Gymnasium's model files are deprecated in, nobody hears
        for row in range(2):
            instance = env.envs[row].unwrapped
            instance.data.qpos[:] = np.nan
            instance.do_simulation(np.zeros(6), 1)
    (record,) = caplog.records
    assert "MuJoCo: Nan, Inf or huge value in QPOS" in record.getMessage()
    assert not list(tmp_path.iterdir())
    assert "WARNING" not in capfd.readouterr().err
