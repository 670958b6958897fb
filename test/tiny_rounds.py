"""training.unscene3d.rounds with narrow networks, as a process of its own or under torchrun."""

import sys

import pytest
from boxes_library import narrow_networks

from training.unscene3d import rounds

if __name__ == "__main__":
    narrow_networks(pytest.MonkeyPatch())
    sys.exit(rounds.main())
