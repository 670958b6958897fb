"""Starts a node as a process of its own, watches it and ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

STOP_TIMEOUT_S = 10.0
LOG_LINES = 20


class LiveRunFailed(Exception):
    """The nodes did not do their work; says which and how, with its last words."""


class NodeProcess:
    """One node in a process of its own, its output in a log file."""

    def __init__(
        self,
        name: str,
        parameters: dict[str, Any],
        remappings: dict[str, str],
        environment: dict[str, str],
        log_folder: Path,
    ) -> None:
        self.name = name
        self.log_path = log_folder / f"{name}.log"
        arguments = []
        for key, value in parameters.items():
            arguments += ["-p", f"{key}:={json.dumps(value)}"]
        for recorded, played in remappings.items():
            arguments += ["-r", f"{recorded}:={played}"]
        command = [sys.executable, "-m", f"unscene_ros.nodes.{name}", "--ros-args", *arguments]
        with self.log_path.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def check_alive(self) -> None:
        """Raises LiveRunFailed, with the end of the log, when the process has ended."""
        if self.exit_code is not None:
            lines = self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise LiveRunFailed(
                f"{self.name} ended with exit code {self.exit_code}; the end of {self.log_path}:\n"
                + "\n".join(f"  {line}" for line in lines)
            )

    def stop(self) -> None:
        """Asks it to end, and ends it when it does not."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        self._process.kill()
        self._process.wait()
