"""Starts one node as a process and ends it cleanly."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node

from unscene_ros.scene import InputError


def run(make_node: Callable[[], Node], arguments: list[str] | None = None) -> None:
    """Spins the node until SIGINT or SIGTERM; exit code 2 for a user's mistake in its settings.

    A node that holds threads ends them in its `destroy_node`. A node may end the process by
    raising SystemExit in a callback.
    """
    rclpy.init(args=arguments)
    try:
        node = make_node()
    except InputError as error:
        get_logger("unscene_ros").fatal(str(error))
        rclpy.try_shutdown()
        sys.exit(2)
    except KeyboardInterrupt:
        rclpy.try_shutdown()
        return
    except Exception:
        if rclpy.ok():
            raise
        return  # asked to end while it was starting, so that ROS was gone under its hands
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
