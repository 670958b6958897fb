"""Neighbours, structure and limits of size, on boxes and on squares whose sizes are known."""

import numpy as np
import pytest
from box_world import Box, surface_of
from planted_segments import tiled_graph

from training.unscene3d.segment_graph import (
    MaskLimits,
    SegmentGraphConfig,
    segment_graph,
    within_limits,
)
from unscene_ros.scene import InputError, Mesh, Segments

FLOOR = Box((-2, -2, -0.1), (2, 2, 0))
NO_LIMITS = MaskLimits(min_area_m2=0.0, max_length_m=1000.0, max_scene_share=1000.0)


def two_boxes_on_a_floor(gap_m):
    mesh, box_of_vertex = surface_of(
        [FLOOR, Box((0, 0, 0), (0.5, 0.5, 0.5)), Box((0.5 + gap_m, 0, 0), (1.2, 0.5, 0.5))]
    )
    return mesh, Segments(box_of_vertex.astype(np.int32), np.zeros((0, 2), np.int32), 3)


@pytest.mark.parametrize(("near_m", "are_neighbors"), [(0.0, False), (0.05, True), (0.02, False)])
def test_segments_are_neighbours_up_to_the_distance(near_m, are_neighbors):
    graph = segment_graph(*two_boxes_on_a_floor(0.03), SegmentGraphConfig(near_m=near_m))
    assert ([1, 2] in graph.neighbors.tolist()) == are_neighbors


@pytest.mark.parametrize("without", [True, False])
def test_the_floor_is_not_movable_when_structure_is_left_out(without):
    config = SegmentGraphConfig(without_structure=without)
    graph = segment_graph(*two_boxes_on_a_floor(0.1), config)
    assert graph.movable.tolist() == [not without, True, True]


def test_shapes_of_masks_are_those_of_the_surface():
    mesh, segments = two_boxes_on_a_floor(0.1)
    shapes = segment_graph(mesh, segments).shapes(np.array([[False, True, False]]))
    assert shapes.areas[0] == pytest.approx(5 * 0.25, rel=0.2)  # it stands on the floor
    assert 0.4 < shapes.lengths[0] < 0.8


def test_an_empty_mesh_has_an_empty_graph():
    segments = Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0)
    graph = segment_graph(Mesh.empty(), segments)
    assert graph.movable.shape == (0,)
    assert within_limits(np.zeros((0, 0), bool), graph, MaskLimits()).shape == (0,)


def test_each_limit_alone_takes_out_what_it_should():
    # Squares of 0.2 m: one of them, a row of six (1.2 m), all 36 (1.2 x 1.2 m).
    graph = tiled_graph(36)
    masks = np.zeros((3, 36), bool)
    masks[0, 0] = masks[1, :6] = masks[2] = True
    expected = {
        "min_segments=2": [False, True, True],
        "min_area_m2=0.1": [False, True, True],
        "min_length_m=0.3": [False, True, True],
        "max_length_m=1.0": [True, False, False],
        "max_scene_share=0.5": [True, False, False],
    }
    for setting, kept in expected.items():
        name, value = setting.split("=")
        fields = {field: getattr(NO_LIMITS, field) for field in NO_LIMITS.__slots__}
        limits = MaskLimits(**(fields | {name: float(value)}))
        assert within_limits(masks, graph, limits).tolist() == kept, setting
    assert within_limits(masks, graph, NO_LIMITS).all()


def test_a_negative_distance_is_refused():
    with pytest.raises(InputError, match="near_m"):
        SegmentGraphConfig(near_m=-0.1)
