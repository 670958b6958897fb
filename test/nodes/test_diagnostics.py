"""What nodes say of themselves arrives with its sections, and says when something is wrong."""

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message

from unscene_ros.nodes import qos
from unscene_ros.nodes.diagnostics import Diagnostics, diagnostics_from_msg, diagnostics_to_msg


def test_figures_come_back_with_their_sections():
    values = {"frames": {"used": 12345678, "rate_hz": 4.987654321}, "dropped": {"too slow": 2}}
    message = diagnostics_to_msg("fusion_node", Time(), "", values)
    assert message.status[0].level == b"\x00"
    received = deserialize_message(serialize_message(message), DiagnosticArray)
    back = diagnostics_from_msg(received)["fusion_node"]
    assert back["frames"] == {"used": 12345678, "rate_hz": pytest.approx(4.98765)}
    assert back["dropped"] == {"too slow": 2}


def test_a_problem_is_a_warning():
    warning = diagnostics_to_msg("fusion_node", Time(), "dropped: 3 too slow", {})
    assert warning.status[0].level == b"\x01"
    assert warning.status[0].message == "dropped: 3 too slow"


def test_figures_are_published_again_and_again_while_simulated_time_stands_still(ros):
    ros.start()
    simulated = Parameter("use_sim_time", value=True)
    node = ros.add(Node("talker", parameter_overrides=[simulated]))
    received = []
    listener = ros.add(Node("listener"))
    listener.create_subscription(DiagnosticArray, "/diagnostics", received.append, qos.DIAGNOSTICS)
    counts = iter(range(1000))
    Diagnostics(node, 0.05, lambda: {"count": next(counts)}, lambda: "too late")
    ros.spin_until(lambda: len(received) >= 2)
    first, second = (diagnostics_from_msg(message)["talker"] for message in received[:2])
    assert second["count"] == first["count"] + 1
    assert received[0].status[0].message == "too late"
