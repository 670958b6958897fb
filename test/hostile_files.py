"""Ways to spoil an .npz file, for tests of what reads one."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]


def _cut(share: float) -> Damage:
    return lambda content: content[: int(share * len(content))]


def _flipped(bits: list[tuple[float, int]]) -> Damage:
    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        for place, bit in bits:
            changed[int(place * len(changed))] ^= 1 << bit
        return bytes(changed)

    return flip


def _swapped(starts: tuple[float, float]) -> Damage:
    def swap(content: bytes) -> bytes:
        low, high = sorted(int(start * len(content)) for start in starts)
        return content[high:] + content[low:high] + content[:low]

    return swap


SHARES = st.floats(0, 1, exclude_max=True)
DAMAGES = st.one_of(
    SHARES.map(_cut),
    st.lists(st.tuples(SHARES, st.integers(0, 7)), min_size=1, max_size=8).map(_flipped),
    st.tuples(SHARES, SHARES).map(_swapped),
)


def npy(shape: str, dtype: str = "<f4", data: bytes = b"") -> bytes:
    """An array file that claims this shape, whatever data it has."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """These bytes under these names."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def claim_size(path: Path, size: int) -> None:
    """Makes the directory of a zip file lie about the length of its first member."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", size)
    path.write_bytes(content)
