"""What all tests share: the device that stands in for a GPU is there for those that are marked `device`."""

import pytest

from tests.device import simulated


@pytest.fixture(autouse=True)
def device_that_is_simulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("device"):
        if not simulated.is_registered():
            simulated.register(tmp_path_factory.mktemp("device"))
        monkeypatch.setattr("rlx.data.dict_tensor._ONE_DEVICE", False)
