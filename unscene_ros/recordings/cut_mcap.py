"""An mcap file that lost its end -> a file that ends cleanly behind its last complete record.

Layout of mcap: a magic number, then records of one byte kind, eight bytes length and content, the
last of them a footer, then the magic number again (https://mcap.dev/spec).
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any


class CutMcap:
    """The path of a cut-off file; what is opened ends with an empty footer, as a whole file would.

    It offers the few methods of a path that rosbags uses.
    """

    suffix = ".mcap"
    _MAGIC = b"\x89MCAP0\r\n"
    _KINDS = range(0x01, 0x10)
    _DATA_END, _FOOTER = 0x0F, 0x02

    def __init__(self, path: Path) -> None:
        self._path = path
        self.length = self._whole_records()

    def exists(self) -> bool:
        return self._path.exists()

    def is_dir(self) -> bool:
        return False

    def open(self, mode: str) -> io.BufferedReader:
        footer = struct.pack("<BQQQI", self._FOOTER, 20, 0, 0, 0) + self._MAGIC
        return io.BufferedReader(_CutFile(self._path, self.length, footer))

    def _whole_records(self) -> int:
        """Bytes up to the end of the last complete record."""
        size = self._path.stat().st_size
        end = len(self._MAGIC)
        with self._path.open("rb") as file:
            while end + 9 <= size:
                file.seek(end)
                kind, length = struct.unpack("<BQ", file.read(9))
                ends_data = kind in (self._DATA_END, self._FOOTER) or kind not in self._KINDS
                if ends_data or end + 9 + length > size:
                    break
                end += 9 + length
        return end


class _CutFile(io.RawIOBase):
    """The first `length` bytes of a file, followed by `tail`."""

    def __init__(self, path: Path, length: int, tail: bytes) -> None:
        self._file = path.open("rb")
        self._length = length
        self._tail = tail
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._length + len(self._tail),
        }[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position < self._length:
            self._file.seek(self._position)
            data = self._file.read(min(len(buffer), self._length - self._position))
        else:
            start = self._position - self._length
            data = self._tail[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
