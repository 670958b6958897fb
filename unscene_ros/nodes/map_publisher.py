"""The fused map -> ~/mesh for other nodes, ~/mesh_markers for viewers, in a thread of its own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

from visualization_msgs.msg import MarkerArray

from unscene_ros.latency import Latency
from unscene_ros.msg import Mesh as MeshMsg
from unscene_ros.nodes import conversions, display, qos
from unscene_ros.nodes.live_map import LiveMap, MapState
from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.nodes.mesh_chunks import MeshChunks
from unscene_ros.nodes.newest_worker import NewestWorker
from unscene_ros.scene import Mesh


class _Viewers(NamedTuple):
    """Who is subscribed, by ids that nobody gets again, and how many of them a message reaches."""

    ids: frozenset[tuple[int, ...]] = frozenset()
    reached: int = 0

    def lack_what_was_sent_to(self, earlier: _Viewers) -> bool:
        """Whether somebody joined; an id may be known some time before messages reach it."""
        return bool(self.ids - earlier.ids) or self.reached > earlier.reached


class MapPublisher:
    """Publishes the whole mesh when the map has changed, and to viewers what changed of it."""

    def __init__(
        self,
        node: ManagedNode,
        undo: ExitStack,
        live_map: LiveMap,
        latency: Latency,
        world_frame: str,
        max_marker_triangles: int,
    ) -> None:
        self.revision = 0
        self._node = node
        self._live_map = live_map
        self._latency = latency
        self._world_frame = world_frame
        self._max_marker_triangles = max_marker_triangles
        self._published = MapState(Mesh.empty(), "", 0, 0, 0)
        self._header = conversions.make_header(world_frame, 0)
        self._chunks = MeshChunks()
        self._served = _Viewers()
        self._takers: set[str] = set()
        self._mesh_publisher = node.publish_on(undo, MeshMsg, "~/mesh", qos.MAP)
        self._marker_publisher = node.publish_on(
            undo, MarkerArray, "~/mesh_markers", qos.reliable(10)
        )
        self._worker = NewestWorker(
            "map",
            self._update,
            on_drop=lambda _: None,  # only a start signal: the next map holds everything
            on_failure=lambda _, error: node.get_logger().error(f"no new map: {error!r}"),
        )
        undo.callback(self._worker.stop)

    def publish_changes(self) -> None:
        """Starts an update, if there is anything new to send, and returns at once."""
        if self._is_old or self._viewers_lack_something:
            self._worker.submit(None)

    def figures(self) -> dict[str, Any]:
        """The state of the published map, for diagnostics."""
        state = self._published
        return {
            "revision": self.revision,
            "frames": state.frames,
            "vertices": len(state.mesh.vertices),
        }

    def lost_takers(self) -> list[str]:
        """The nodes that took the map at the last call and do so no more."""
        topic = self._mesh_publisher.topic_name
        ends = self._node.get_subscriptions_info_by_topic(topic)
        # Names with an underscore in front are hidden: command-line tools, which come and go.
        takers = {end.node_name for end in ends if not end.node_name.startswith("_")}
        lost, self._takers = sorted(self._takers - takers), takers
        return lost

    @property
    def _is_old(self) -> bool:
        return self._live_map.change > self._published.change

    @property
    def _viewers_lack_something(self) -> bool:
        viewers = self._viewers()
        return viewers.lack_what_was_sent_to(self._served) or bool(
            viewers.reached and self._chunks.remaining
        )

    def _viewers(self) -> _Viewers:
        publisher = self._marker_publisher
        ends = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
        ids = frozenset(tuple(end.endpoint_gid) for end in ends)
        return _Viewers(ids, publisher.get_subscription_count())

    def _update(self, _: None) -> None:
        if self._is_old:
            self._publish_mesh()
        self._publish_markers()

    def _publish_mesh(self) -> None:
        state = self._live_map.extract()
        self._published = state
        self.revision += 1
        self._header = conversions.make_header(self._world_frame, state.stamp_ns)
        with self._latency.measure("mesh_message"):
            message = conversions.mesh_to_msg(state.mesh, self._header, self.revision, state.map_id)
            self._mesh_publisher.publish(message)

    def _publish_markers(self) -> None:
        """Sends what changed, and everything when a viewer has joined."""
        viewers = self._viewers()
        joined = viewers.lack_what_was_sent_to(self._served)
        self._served = viewers
        if not viewers.reached:
            return
        if joined:
            self._chunks = MeshChunks()
        with self._latency.measure("mesh_markers"):
            changed, gone = self._chunks.update(self._published.mesh, self._max_marker_triangles)
            if not (joined or changed or gone):
                return
            markers = display.mesh_to_markers(changed, gone, joined, self._header)
            self._marker_publisher.publish(markers)
