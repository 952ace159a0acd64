"""The log of episodes is a sequence of tuples, and is kept as columns."""

import pickle

import numpy as np
import pytest

from rlx.batcher.episode_log import EpisodeLog

FIRST = [(3, 1.5, 4), (0, -2.0, 7)]
SECOND = [(1, float(n), n) for n in range(5)]


def log_of(episodes: list[tuple[int, float, int]]) -> EpisodeLog:
    return EpisodeLog(*(np.array(column) for column in zip(*episodes, strict=True)))


def test_it_reads_like_the_list_of_tuples_that_it_stands_for() -> None:
    log = log_of(FIRST)
    assert log == FIRST
    assert (len(log), bool(log), list(log), log[1], log[-2]) == (2, True, FIRST, FIRST[1], FIRST[0])
    assert [type(value) for value in log[0]] == [int, float, int]
    assert sorted(log) == sorted(FIRST)
    assert log[:1] == FIRST[:1]
    assert log[log.rows == 0] == FIRST[1:]
    assert log[np.int64(1)] == FIRST[1]
    assert repr(log) == f"EpisodeLog({FIRST})"
    assert log != FIRST[:1]
    assert log != 3
    assert not EpisodeLog()
    with pytest.raises(IndexError):
        _ = log[2]


def test_columns_have_each_number_by_its_name() -> None:
    log = log_of(FIRST)
    assert (log.rows.tolist(), log.returns.tolist(), log.lengths.tolist()) == ([3, 0], [1.5, -2.0], [4, 7])
    assert (log.rows.dtype, log.returns.dtype, log.lengths.dtype) == (np.int64, np.float64, np.int64)


def test_it_grows_behind_what_it_holds() -> None:
    log, expected = EpisodeLog(), []
    for episodes in (FIRST, SECOND, FIRST, SECOND, SECOND):
        log.extend(log_of(episodes))
        expected += episodes
        assert log == expected
    log.extend(EpisodeLog())
    assert log == expected


def test_what_was_taken_stays_when_the_log_goes_on() -> None:
    log = EpisodeLog()
    for _ in range(3):
        log.extend(log_of(FIRST))  # so that there is room behind them
    returns, last = log.returns, log[4:]
    assert log.drop(4) == last == FIRST
    log.extend(log_of(SECOND))
    assert last == FIRST
    assert log == [*FIRST, *FIRST, *SECOND]
    log.clear()
    log.extend(log_of(SECOND))
    assert (returns.tolist(), log == SECOND) == ([1.5, -2.0] * 3, True)


def test_nothing_is_dropped_where_nothing_was_added() -> None:
    log = log_of(FIRST)
    assert log.drop(2) == []
    assert log == FIRST


def test_it_travels_between_processes_and_can_be_added_to_there() -> None:
    sent = pickle.dumps(log_of(SECOND)[2:])
    log = pickle.loads(sent)
    log.extend(log_of(FIRST))
    assert log == SECOND[2:] + FIRST
    assert pickle.loads(pickle.dumps(EpisodeLog())) == []
