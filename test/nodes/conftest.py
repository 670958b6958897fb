"""The nodes' tests need rclpy: left out without it, an error when UNSCENE_REQUIRE_ROS=1."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # small_scan is beside this folder
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

try:
    import rclpy
    import unscene_ros.msg  # noqa: F401 - the compiled messages
    from rclpy.executors import SingleThreadedExecutor
except ImportError as error:
    if os.environ.get("UNSCENE_REQUIRE_ROS") == "1":
        raise
    collect_ignore_glob = ["test_*.py"]
    missing = str(error)
else:
    missing = ""


def pytest_report_header():
    return f"test/nodes is left out: {missing}" if missing else None


class Ros:
    """Nodes of this process, spun until something has happened."""

    def __init__(self):
        self._executor = None
        self._nodes = []

    def start(self, *parameters, arguments=()):
        """Starts ROS with parameters like "fusion.voxel_size_m:=0.05" for the nodes to come.

        `arguments` is a whole command line, from --ros-args on.
        """
        words = [word for parameter in parameters for word in ("-p", parameter)]
        rclpy.init(args=[*(arguments or ["--ros-args"]), *words] if arguments or words else None)
        self._executor = SingleThreadedExecutor()

    def add(self, node):
        self._nodes.append(node)
        self._executor.add_node(node)
        return node

    def spin_until(self, condition, timeout_s=15.0):
        """Spins the nodes; fails when `condition()` does not become true."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "timed out"
            self._executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def stop(self):
        for node in self._nodes:
            node.destroy_node()
        self._nodes.clear()
        rclpy.try_shutdown()


@pytest.fixture
def ros():
    ros = Ros()
    yield ros
    ros.stop()
