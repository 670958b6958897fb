"""The fused map -> ~/mesh for other nodes, ~/mesh_markers for viewers, in a thread of its own."""

from __future__ import annotations

import threading
from typing import Any

from rclpy.node import Node
from visualization_msgs.msg import MarkerArray

from unscene_ros.fusion import TsdfVolume
from unscene_ros.latency import Latency
from unscene_ros.msg import Mesh as MeshMsg
from unscene_ros.nodes import conversions, display, qos
from unscene_ros.nodes.mesh_chunks import MeshChunks
from unscene_ros.nodes.newest_worker import NewestWorker
from unscene_ros.scene import Mesh


class MapPublisher:
    """Publishes the whole mesh when frames were added, and to viewers what changed of it.

    `lock` is held while the volume is read; who changes the volume holds it too.
    """

    def __init__(
        self,
        node: Node,
        volume: TsdfVolume,
        lock: threading.Lock,
        latency: Latency,
        world_frame: str,
        max_marker_triangles: int,
    ) -> None:
        self._volume = volume
        self._lock = lock
        self._latency = latency
        self._world_frame = world_frame
        self._max_marker_triangles = max_marker_triangles
        self._frames_added = 0
        self._frames_in_map = 0
        self._newest_stamp_ns = 0
        self._revision = 0
        self._figures: dict[str, Any] = {}
        self._mesh = Mesh.empty()
        self._header = conversions.make_header(world_frame, 0)
        self._chunks = MeshChunks()
        self._viewers = 0
        self._mesh_publisher = node.create_publisher(MeshMsg, "~/mesh", qos.MAP)
        self._marker_publisher = node.create_publisher(
            MarkerArray, "~/mesh_markers", qos.reliable(10)
        )
        self._worker = NewestWorker(
            "map",
            self._update,
            on_drop=lambda _: None,  # only a start signal: the next map holds everything
            on_failure=lambda _, error: node.get_logger().error(f"no new map: {error!r}"),
        )

    def add_frame(self, stamp_ns: int) -> None:
        """Tells that a frame has changed the volume."""
        self._frames_added += 1
        self._newest_stamp_ns = stamp_ns

    def publish_changes(self) -> None:
        """Starts an update, if there is anything new to send, and returns at once."""
        if self._is_old or self._viewers_lack_something:
            self._worker.submit(None)

    def figures(self) -> dict[str, Any]:
        """The state of the published map, for diagnostics."""
        return {"revision": self._revision, "frames": self._frames_in_map, **self._figures}

    def stop(self) -> None:
        """Ends the thread."""
        self._worker.stop()

    @property
    def _is_old(self) -> bool:
        return self._frames_added > self._frames_in_map

    @property
    def _viewers_lack_something(self) -> bool:
        viewers = self._marker_publisher.get_subscription_count()
        return viewers > self._viewers or bool(viewers and self._chunks.remaining)

    def _update(self, _: None) -> None:
        if self._is_old:
            self._publish_mesh()
        self._publish_markers()

    def _publish_mesh(self) -> None:
        with self._lock, self._latency.measure("meshing"):
            self._mesh = self._volume.extract_mesh()
            self._frames_in_map, stamp_ns = self._frames_added, self._newest_stamp_ns
            self._figures = {
                "vertices": len(self._mesh.vertices),
                "blocks": self._volume.block_count,
                "evicted_blocks": self._volume.evicted_blocks,
                "megabytes": self._volume.memory_megabytes,
            }
        self._revision += 1
        self._header = conversions.make_header(self._world_frame, stamp_ns)
        with self._latency.measure("mesh_message"):
            message = conversions.mesh_to_msg(self._mesh, self._header, self._revision)
            self._mesh_publisher.publish(message)

    def _publish_markers(self) -> None:
        """Sends what changed, and everything when a viewer has joined."""
        viewers = self._marker_publisher.get_subscription_count()
        joined = viewers > self._viewers
        self._viewers = viewers
        if not viewers:
            return
        if joined:
            self._chunks = MeshChunks()
        with self._latency.measure("mesh_markers"):
            changed, gone = self._chunks.update(self._mesh, self._max_marker_triangles)
            markers = display.mesh_to_markers(changed, gone, joined, self._header)
            self._marker_publisher.publish(markers)
