"""A real cluster of Ray on this machine: two nodes or more, each with an address of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlx.batcher.ray_cluster import require_ray

QUICK = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,
    "prestart_worker_first_driver": False,
}
"""A node that is gone is noticed within two seconds; no process is started before there is something for it to do; and
actors do not give way to whatever else the machine does."""


class TwoNodes:
    """A cluster of two nodes, 127.0.0.2 and 127.0.0.3, to which others may be added.

    Attributes:
        address: for `batcher.address`.
    """

    def __init__(self) -> None:
        require_ray()
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "node_ip_address": "127.0.0.2", "include_dashboard": False, "_system_config": QUICK}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.add("127.0.0.3")

    def add(self, ip: str, num_cpus: int = 2) -> Any:
        return self._cluster.add_node(num_cpus=num_cpus, node_ip_address=ip)

    def kill(self, node: Any) -> None:
        """End a node with all its processes, as when its plug is pulled."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    kept = os.environ.pop("RAY_ADDRESS", None)
    cluster = TwoNodes()
    try:
        yield cluster
    finally:
        cluster.close()
        if kept is not None:
            os.environ["RAY_ADDRESS"] = kept
