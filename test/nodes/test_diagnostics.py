"""What nodes say of themselves arrives with its sections, and says when something is wrong."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message

from unscene_ros.nodes import qos
from unscene_ros.nodes.diagnostics import (
    Diagnostics,
    DiagnosticsConfig,
    Problem,
    diagnostics_from_msg,
    diagnostics_to_msg,
    exceeded,
    memory_mb,
)
from unscene_ros.scene import InputError

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"


def test_figures_come_back_with_their_sections():
    values = {"frames": {"used": 12345678, "rate_hz": 4.987654321}, "dropped": {"too slow": 2}}
    message = diagnostics_to_msg("fusion_node", Time(), [], values)
    assert message.status[0].level == OK
    received = deserialize_message(serialize_message(message), DiagnosticArray)
    back = diagnostics_from_msg(received)["fusion_node"]
    assert back["frames"] == {"used": 12345678, "rate_hz": pytest.approx(4.98765)}
    assert back["dropped"] == {"too slow": 2}


def status_of(*problems):
    [status] = diagnostics_to_msg("fusion_node", Time(), problems, {}).status
    return status.level, status.message


def test_a_status_is_as_bad_as_its_worst_problem_and_tells_all_of_them_worst_first():
    warning, error = Problem("warn", "dropped: 3 too slow"), Problem("error", "no frame for 7 s")
    assert status_of() == (OK, "ok")
    assert status_of(warning) == (WARN, "dropped: 3 too slow")
    assert status_of(warning, error) == (ERROR, "no frame for 7 s\ndropped: 3 too slow")


def test_a_problem_without_a_text_is_none():
    assert status_of(Problem("error", "")) == (OK, "ok")


def test_figures_are_published_again_and_again_while_simulated_time_stands_still(ros):
    ros.start()
    simulated = Parameter("use_sim_time", value=True)
    node = ros.add(Node("talker", parameter_overrides=[simulated]))
    received = []
    listener = ros.add(Node("listener"))
    listener.create_subscription(DiagnosticArray, "/diagnostics", received.append, qos.DIAGNOSTICS)
    counts, problem = iter(range(1000)), Problem("error", "too late")
    Diagnostics(node, 0.05, lambda: {"count": next(counts)}, lambda: [problem])
    ros.spin_until(lambda: len(received) >= 2)
    first, second = (diagnostics_from_msg(message)["talker"] for message in received[:2])
    assert second["count"] == first["count"] + 1
    assert received[0].status[0].message == "too late"
    assert received[0].status[0].level == ERROR


def test_the_share_of_dropped_frames_is_of_the_recent_past_and_survives_a_new_beginning(ros):
    ros.start()
    node, received, counts = ros.add(Node("talker")), [], {"used": 1000, "too slow": 0}
    node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda message: received.append(diagnostics_from_msg(message)["talker"]["frames"]),
        qos.DIAGNOSTICS,
    )

    def figures():
        return {"frames": {"used": counts["used"]}, "dropped": {"too slow": counts["too slow"]}}

    def share_at(**new_counts):
        counts.update(new_counts)
        ros.spin_until(lambda: received and received[-1]["used"] == counts["used"])
        return received[-1]["drop_share"]

    Diagnostics(node, 0.05, figures)
    assert share_at(used=1000) == 0
    assert share_at(used=1003, **{"too slow": 1}) == 0.25
    assert share_at(used=1004, **{"too slow": 12}) == 0.75
    assert share_at(used=0, **{"too slow": 0}) == 0


@pytest.mark.parametrize(
    ("figures", "level", "text"),
    [
        (
            {"frames": {"drop_share": 0.75}},
            "error",
            "75% of the frames of 10 s were dropped",
        ),
        ({"recent": {"meshing": {"p95_ms": 10_500}}}, "warn", "meshing takes up to 10.5 s (p95)"),
        ({"recent": {"meshing": {"p95_ms": 61_000}}}, "error", "meshing takes up to 61.0 s (p95)"),
        (
            {"segmentation": {"age_s": 31.0}},
            "warn",
            "no map was segmented for 31 s, though new ones came",
        ),
        (
            {"segmentation": {"age_s": 121.0}},
            "error",
            "no map was segmented for 121 s, though new ones came",
        ),
        (
            {"memory_mb": {"gpu_free": 40.0, "gpu_total": 1000.0}},
            "warn",
            "96% of the GPU's 1000 MB are taken",
        ),
    ],
)
def test_what_exceeds_a_threshold_is_a_problem_of_its_level(figures, level, text):
    assert list(exceeded(figures, DiagnosticsConfig())) == [Problem(level, text)]


def test_what_is_within_its_thresholds_or_unknown_is_no_problem():
    figures = {
        "frames": {"drop_share": 0.5},
        "recent": {"fusion": {"rate_hz": 0.0}, "meshing": {"p95_ms": 9_999.0}},
        "segmentation": {"age_s": 30.0},
        "memory_mb": {"peak": 1e6, "gpu_free": 500.0, "gpu_total": 1000.0},
    }
    assert list(exceeded(figures, DiagnosticsConfig())) == []
    assert list(exceeded({}, DiagnosticsConfig())) == []


def test_thresholds_out_of_range_or_out_of_order_are_refused():
    with pytest.raises(InputError, match=r"diagnostics\.max_drop_share: expected 0\.\.1, got 2"):
        DiagnosticsConfig(max_drop_share=2.0)
    with pytest.raises(InputError, match=r"warn_latency_s: expected at most error_latency_s, 60"):
        dataclasses.replace(DiagnosticsConfig(), warn_latency_s=61.0)


def test_memory_of_a_gpu_is_told_only_where_torch_has_used_one(monkeypatch):
    used = SimpleNamespace(
        is_initialized=lambda: True,
        mem_get_info=lambda: (6_000_000, 8_000_000),
        memory_allocated=lambda: 1_000_000,
        max_memory_allocated=lambda: 1_500_000,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=used))
    figures = memory_mb()
    assert figures.pop("peak") > 1
    assert figures == {"gpu": 1.0, "gpu_peak": 1.5, "gpu_free": 6.0, "gpu_total": 8.0}
    used.is_initialized = lambda: False
    assert set(memory_mb()) == {"peak"}
    monkeypatch.delitem(sys.modules, "torch")
    assert set(memory_mb()) == {"peak"}


def test_a_gpu_that_does_not_answer_is_an_error_that_says_what_to_do(monkeypatch):
    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lost = SimpleNamespace(is_initialized=lambda: True, mem_get_info=fails)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=lost))
    [problem] = exceeded({"memory_mb": memory_mb()}, DiagnosticsConfig())
    assert problem.level == "error"
    assert "start it again" in problem.text and "network.device to cpu" in problem.text
