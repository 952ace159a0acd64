"""Curves on common points."""

from pathlib import Path

import numpy as np
import pytest

from rlx.errors import ConfigError
from rlx.run.metrics import CsvSink
from rlx.tools.curves import Curve, average, final_scores, read_curves, resample
from rlx.tools.groups import Group

from .made_runs import make_run

HERE = Path()


def test_point_is_the_mean_of_the_curve_over_its_share() -> None:
    curve = Curve(HERE, np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 0.0]))
    assert resample(curve, np.array([0.0, 1.0, 2.0])).tolist() == [1.0, 1.0]
    assert resample(curve, np.array([0.0, 0.5, 2.0])).tolist() == pytest.approx([0.5, (0.75 + 1.0) / 1.5])


def test_curve_ends_where_its_run_does() -> None:
    curve = Curve(HERE, np.array([1.0, 3.0]), np.array([4.0, 4.0]))
    assert np.isnan(resample(curve, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))).tolist() == [True, False, False, True]


def test_average_is_over_runs_where_all_have_values() -> None:
    curves = [
        Curve(HERE, np.array([0.0, 4.0]), np.array([1.0, 1.0])),
        Curve(HERE, np.array([0.0, 2.0]), np.array([3.0, 3.0])),
    ]
    band = average(curves, np.arange(5.0), statistic="mean", level=0.9, draws=100)
    assert band.x.tolist() == [0.5, 1.5]
    assert band.middle.tolist() == [2.0, 2.0]
    assert (band.low <= band.middle).all()
    assert (band.middle <= band.high).all()


def test_late_rows_come_in_order_and_blanks_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", returns=[None, 5.0, 7.0])
    sink = CsvSink(run / "metrics.csv")
    for steps, value in ((300, 3.0), (200, 2.0)):
        sink.write({"env_steps": steps, "iteration": 0, "wall_time": 9.0, "eval/return": value})
    sink.close()
    notes: list[str] = []
    (found,) = read_curves([Group("e", "l", (run,))], "episode/return", "env_steps", notes)
    assert found.curves[0].x.tolist() == [200, 300]
    (found,) = read_curves([Group("e", "l", (run,))], "eval/return", "env_steps", notes)
    assert found.curves[0].y.tolist() == [2.0, 3.0]
    assert final_scores(found, 0.1).tolist() == [3.0]
    assert notes == []


def test_run_without_values_is_left_out_by_name_and_a_metric_of_none_is_an_error(tmp_path: Path) -> None:
    full, empty = make_run(tmp_path / "full"), make_run(tmp_path / "empty", returns=[None])
    notes: list[str] = []
    (found,) = read_curves([Group("e", "l", (full, empty))], "episode/return", "env_steps", notes)
    assert [curve.run for curve in found.curves] == [full]
    assert len(notes) == 1
    assert "left out" in notes[0]
    assert str(empty) in notes[0]
    with pytest.raises(ConfigError, match=r"--metric: no run has 'episode/retrun'. Did you mean 'episode/return'"):
        read_curves([Group("e", "l", (full,))], "episode/retrun", "env_steps", [])


def test_a_huge_value_spoils_its_own_share_alone() -> None:
    x = np.linspace(0.0, 100.0, 201)
    y = np.where(np.arange(201) == 3, 1e20, 1.0)
    found = resample(Curve(Path("run"), x, y), np.linspace(0.0, 100.0, 51))
    np.testing.assert_allclose(found[2:], 1.0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, np.nan, 3.0], "in 1 rows, from env_steps 200 on; these are left out"),
        (
            [1.0, None, np.nan, np.inf],
            "in 2 rows, from env_steps 300 on; these are left out, and nothing is known of it after 100",
        ),
        ([1.0, None, 3.0, None], None),
    ],
)
def test_rows_that_are_no_numbers_are_told_and_blank_ones_are_not(
    tmp_path: Path, values: list[float | None], told: str | None
) -> None:
    run = make_run(tmp_path / "run", returns=values)
    notes: list[str] = []
    (found,) = read_curves([Group("all", "CartPole-v1", (run,))], "episode/return", "env_steps", notes)
    finite = [value for value in values if value is not None and np.isfinite(value)]
    assert found.curves[0].y.tolist() == finite
    assert notes == ([] if told is None else [f"'{run}': 'episode/return' is NaN or infinite {told}"])
