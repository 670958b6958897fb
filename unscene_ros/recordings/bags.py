"""Messages of a ROS 2 bag (mcap or sqlite3) in the order they were recorded, without ROS.

A recording that was cut off, because the recorder crashed or the disk was full, is read up to the
cut. Library: rosbags.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from unscene_ros.recordings.cut_mcap import CutMcap
from unscene_ros.scene import InputError

_STORAGE_SUFFIXES = (".mcap", ".db3")


class BagMessage(NamedTuple):
    """One recorded message, still serialised (CDR)."""

    topic: str
    type: str
    recorded_ns: int
    data: bytes


class Bag:
    """A bag folder, or one of its .mcap or .db3 files, open for reading."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when there is no readable bag at this path, or an empty one."""
        if not path.exists():
            raise InputError(f"recording {path}: there is no such file or folder")
        self.path = path
        self.warnings: list[str] = []
        self._readers = self._open(path)
        # The messages read here have had the same definition in every ROS 2 release; the bag's own
        # copies of the definitions may be missing or hold types that nobody here reads.
        self._types = get_typestore(Stores.ROS2_HUMBLE)
        self.type_of: dict[str, str] = {}
        self.count_of: dict[str, int] = {}
        for reader in self._readers:
            for connection in reader.connections:
                self.type_of[connection.topic] = connection.msgtype
                count = self.count_of.get(connection.topic, 0) + connection.msgcount
                self.count_of[connection.topic] = count
        if not any(self.count_of.values()):
            why = "; ".join(self.warnings) or "it is empty"
            raise InputError(f"{path}: expected recorded messages, got none: {why}")

    def messages(
        self, topics: Collection[str], until_ns: int | None = None
    ) -> Iterator[BagMessage]:
        """The messages of these topics in recorded order, before `until_ns` if given.

        Damaged storage ends the iteration early, with a warning.
        """
        streams = []
        for reader in self._readers:
            connections = [c for c in reader.connections if c.topic in topics]
            if connections:
                streams.append(reader.messages(connections, stop=until_ns))
        try:
            for connection, stamp_ns, data in heapq.merge(*streams, key=lambda item: item[1]):
                yield BagMessage(connection.topic, connection.msgtype, stamp_ns, data)
        except Exception as error:  # the storage libraries raise many kinds for damaged files
            self.warn(f"{self.path}: damaged, read up to the damage ({error})")

    def first(self, topic: str) -> Any:
        """The first message of a topic, deserialised; raises InputError when there is none."""
        for message in self.messages([topic]):
            return self.deserialize(message)
        raise InputError(f"{self.path}: topic '{topic}' has no readable message")

    def deserialize(self, message: BagMessage) -> Any:
        """The message with its fields as attributes; raises InputError when it is malformed."""
        try:
            return self._types.deserialize_cdr(message.data, message.type)
        except Exception as error:  # generated code fails in whatever way the bytes lead it to
            raise InputError(
                f"{self.path}: a message on '{message.topic}' is no {message.type}: {error}"
            ) from error

    def topic_list(self) -> str:
        """All topics with type and number of messages, one a line, for error messages."""
        lines = [
            f"  {topic} ({self.type_of[topic]}, {self.count_of[topic]} messages)"
            for topic in sorted(self.type_of)
        ]
        return "\n".join(lines) or "  none"

    def warn(self, text: str) -> None:
        """Notes something that a user should know, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def _open(self, path: Path) -> list[Reader]:
        if path.is_dir():
            if (path / "metadata.yaml").exists():
                reader, problem = _try_open(path)
                if reader:
                    return [reader]
                self.warn(f"{path}: {problem}: reading its storage files one by one")
            files = sorted(f for f in path.iterdir() if f.suffix in _STORAGE_SUFFIXES)
        else:
            files = [path]
        if not files:
            raise InputError(f"{path}: expected {' or '.join(_STORAGE_SUFFIXES)} files, got none")
        return [self._open_file(file) for file in files]

    def _open_file(self, path: Path) -> Reader:
        reader, problem = _try_open(path)
        if reader:
            return reader
        if path.suffix == ".mcap":
            cut = CutMcap(path)
            reader, _ = _try_open(cut)
            if reader:
                size_mb = path.stat().st_size / 1e6
                self.warn(f"{path}: cut off, read up to {cut.length / 1e6:.1f} of {size_mb:.1f} MB")
                return reader
        raise InputError(
            f"{path}: expected a ROS 2 bag in mcap or sqlite3 storage, got a file that cannot be "
            f"read ({problem}): try `ros2 bag reindex`, or `sqlite3 FILE .recover` for a .db3"
        )


def is_bag(path: Path) -> bool:
    """Whether this path looks like a bag: a storage file, or a folder that holds one."""
    if path.is_dir():
        return (path / "metadata.yaml").exists() or any(is_bag(f) for f in path.glob("*.*"))
    return path.suffix in _STORAGE_SUFFIXES


def _try_open(path: Any) -> tuple[Reader | None, str]:
    """An open reader, or None and what is wrong."""
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # the parsers raise many kinds for files that are no bags
        return None, str(error) or type(error).__name__
    return reader, ""
