"""Every error of rlx travels: to a worker's batcher, to a sweep's launcher."""

import pickle

import pytest

from rlx import errors
from rlx.batcher.failure import Failure, as_error
from rlx.errors import MissingPackageError, RlxError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RlxError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_its_way_to_another_process(kind: type[RlxError]) -> None:
    error = MissingPackageError.of("drawing", "matplotlib", "plot") if kind is MissingPackageError else kind("reason")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    told = as_error(Failure.of(error, made=False, restarted=False), "worker 1")
    assert type(told) is kind
    assert str(error) in str(told)
