"""How a node's process ends: quietly when it is asked to, with the reason when it cannot start."""

import subprocess
import sys

START = """
import os, signal, sys, time
import rclpy
from rclpy.node import Node
from unscene_ros.nodes.run import run
from unscene_ros.scene import InputError

def make_node():
{body}

run(make_node, [])
"""


def run_node(*body: str) -> tuple[int, str]:
    """Exit code and output of a process whose node is made by these lines."""
    source = START.format(body="\n".join(f"    {line}" for line in body))
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60
    )
    return result.returncode, result.stdout + result.stderr


def test_an_interrupt_while_starting_ends_quietly():
    assert run_node("signal.raise_signal(signal.SIGINT)", "time.sleep(30)") == (0, "")


def test_a_request_to_end_while_starting_ends_quietly():
    body = "signal.raise_signal(signal.SIGTERM)", "while rclpy.ok(): time.sleep(0.01)"
    assert run_node(*body, "return Node('late')") == (0, "")


def test_a_mistake_in_the_settings_is_one_line_and_exit_code_two():
    code, output = run_node("raise InputError('rate: expected more than 0, got 0')")
    assert code == 2
    assert output.count("\n") == 1 and "rate: expected more than 0, got 0" in output


def test_a_fault_of_the_node_is_shown_whole():
    code, output = run_node("return 1 / 0")
    assert code == 1
    assert "ZeroDivisionError" in output
