"""What a result says about its origin is true, or left out."""

import platform
import re
import subprocess
import sys

import numpy as np
import pytest

from unscene_ros import provenance


def repository(folder) -> list[str]:
    """A new git repository; returns the start of git commands in it."""
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    return git


@pytest.fixture
def module_in(tmp_path, monkeypatch):
    """The package as if it lay in a folder of its own."""
    path = tmp_path / "provenance.py"
    path.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(path))
    return tmp_path


def test_the_commit_is_that_of_the_checkout_and_changes_are_marked(module_in):
    git = repository(module_in)
    subprocess.run([*git, "add", "provenance.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert provenance.git_commit() == head.stdout.strip()
    (module_in / "provenance.py").write_text("changed")
    assert provenance.git_commit() == head.stdout.strip() + "-dirty"


def test_a_copy_that_no_repository_tracks_has_no_commit(module_in):
    assert provenance.git_commit() is None
    repository(module_in)
    assert provenance.git_commit() is None


def test_versions_and_machine_are_those_of_this_process():
    found = provenance.provenance()
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert re.search(r", \d+ cores, \d+ GB, ", found["machine"])


def test_peak_memory_is_what_a_process_held_at_most():
    program = (
        "import numpy as np\n"
        "from unscene_ros.provenance import peak_memory_mb\n"
        "before = peak_memory_mb()\n"
        "np.ones(25_000_000)\n"  # 200 MB, given back at once
        "print(peak_memory_mb() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 150 < float(done.stdout) < 250
