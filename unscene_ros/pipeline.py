"""START HERE: the order of the stages, from frames to instances with lasting ids.

    frames -> fusion.TsdfVolume -> Mesh                        (with a few keyframes.Keyframes)
    Mesh   -> oversegmentation.oversegment -> Segments
           -> segmentation.<segmenter>.segment -> Instances
           -> tracking.InstanceTracker.update -> track ids

The live nodes, the replay of recordings, training and the demo call these same stages: fusion runs
at camera rate, the rest on the newest mesh. There is no second inference path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.keyframes import KeyframeConfig
from unscene_ros.latency import Latency
from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import Frame, Instances, Mesh, Segments
from unscene_ros.segmentation import SegmentationConfig, Segmenter
from unscene_ros.tracking import InstanceTracker, TrackingConfig


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """One section for each stage; each section's defaults live beside its stage."""

    fusion: FusionConfig = field(default_factory=FusionConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def build_mesh(frames: Iterable[Frame], config: FusionConfig | None = None) -> Mesh:
    """Fuses posed RGB-D frames into one mesh in the frames' world."""
    volume = TsdfVolume(config or FusionConfig())
    for frame in frames:
        volume.integrate(frame)
    return volume.extract_mesh()


def segment_mesh(
    mesh: Mesh,
    segmenter: Segmenter,
    keyframes: Sequence[Frame] = (),
    latency: Latency | None = None,
) -> tuple[Segments, Instances]:
    """Cuts a mesh into segments and groups them into instances.

    keyframes: pictures taken of this mesh, for segmenters that look at images; may be empty.
    latency: gets the times of both stages.
    """
    latency = latency or Latency()
    with latency.measure("oversegmentation"):
        segments = oversegment(mesh, segmenter.oversegmentation)
    with latency.measure("segmentation"):
        instances = segmenter.segment(mesh, segments, keyframes)
    return segments, instances


def track_instances(
    mesh: Mesh,
    segments: Segments,
    instances: Instances,
    tracker: InstanceTracker,
    latency: Latency | None = None,
) -> tuple[Instances, np.ndarray]:
    """The instances that have a surface of their own, and their lasting ids (N,) int32.

    Left out is what lies wholly under better-scored instances: on the map there is nothing of it
    to be seen, nor to know it by again.
    latency: gets the time of the tracking.
    """
    latency = latency or Latency()
    owners = np.unique(instances.of_segment())
    owners = owners[owners >= 0]
    shown = Instances(
        instances.masks[owners], instances.scores[owners], instances.class_ids[owners]
    )
    with latency.measure("tracking"):
        return shown, tracker.update(mesh, segments, shown)
