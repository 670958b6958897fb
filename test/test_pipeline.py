"""The order of the stages: what each is given, and what comes out of nothing."""

import numpy as np
import pytest
from small_scan import small_frames

from unscene_ros.fusion import FusionConfig
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.pipeline import PipelineConfig, build_mesh, segment_mesh, track_instances
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.segmentation import load_segmenter
from unscene_ros.settings import from_dict
from unscene_ros.tracking import InstanceTracker


class Remembering:
    """A segmenter that finds nothing and remembers what it was given."""

    oversegmentation = OversegmentationConfig(k=0.02, min_vertices=7)

    def segment(self, mesh, segments, keyframes=()):
        self.given = mesh, segments, keyframes
        return Instances.empty(segments.count)


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(small_frames(6))


def test_no_frames_make_an_empty_mesh_without_segments_and_instances():
    nothing = build_mesh([])
    assert len(nothing.vertices) == len(nothing.faces) == 0
    segments, instances = segment_mesh(nothing, load_segmenter("training-free"))
    assert segments.count == len(instances.masks) == 0


def test_a_stream_of_frames_makes_the_mesh_that_a_list_makes(mesh):
    streamed = build_mesh(frame for frame in small_frames(6))
    assert len(mesh.vertices) > 500
    np.testing.assert_array_equal(streamed.vertices, mesh.vertices)
    np.testing.assert_array_equal(streamed.faces, mesh.faces)


def test_the_mesh_is_as_fine_as_asked(mesh):
    coarse = build_mesh(small_frames(6), FusionConfig(voxel_size_m=0.08))
    assert 0 < len(coarse.vertices) < len(mesh.vertices) / 2


def test_the_segmenter_gets_its_own_segments_and_the_keyframes(mesh):
    segmenter, keyframes = Remembering(), small_frames(2)
    segments, instances = segment_mesh(mesh, segmenter, keyframes)
    given_mesh, given_segments, given_keyframes = segmenter.given
    assert given_mesh is mesh and given_segments is segments and given_keyframes is keyframes
    expected = oversegment(mesh, segmenter.oversegmentation)
    np.testing.assert_array_equal(segments.of_vertex, expected.of_vertex)
    assert instances.masks.shape == (0, segments.count)


def test_keyframes_are_optional():
    segmenter = Remembering()
    segment_mesh(Mesh.empty(), segmenter)
    assert len(segmenter.given[2]) == 0


def test_an_instance_inside_better_ones_is_no_object_and_takes_no_id():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), np.zeros((3, 3), np.uint8), vertices)
    segments = Segments(np.arange(3, dtype=np.int32), np.zeros((0, 2), np.int32), 3)
    masks = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    scores, class_ids = np.float32([0.5, 0.9, 0.6, 0.8]), np.int32([3, 4, 5, 6])
    found, tracker = Instances(masks, scores, class_ids), InstanceTracker()
    for _ in range(2):
        shown, track_ids = track_instances(mesh, segments, found, tracker)
        assert shown.class_ids.tolist() == [4, 5] and track_ids.tolist() == [1, 2]
        np.testing.assert_array_equal(shown.masks, masks[[1, 2]])
    nothing, track_ids = track_instances(mesh, segments, Instances.empty(3), tracker)
    assert len(nothing.masks) == len(track_ids) == 0


def test_settings_differ_from_the_defaults_in_what_is_written_only():
    config = from_dict(
        PipelineConfig,
        {
            "fusion": {"voxel_size_m": 0.02},
            "segmentation": {"training_free": {"min_area_m2": 0.5}, "network": {"crop_m": 8}},
        },
    )
    default = PipelineConfig()
    assert config.fusion.voxel_size_m == 0.02
    assert config.segmentation.training_free.min_area_m2 == 0.5
    assert config.segmentation.network.crop_m == 8
    assert config.keyframes == default.keyframes and config.tracking == default.tracking
    kept, usual = config.segmentation.training_free, default.segmentation.training_free
    assert kept.contrast == usual.contrast and kept.oversegmentation == usual.oversegmentation


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"fuson": {}}, r"unknown setting 'fuson', did you mean 'fusion'\?"),
        (
            {"fusion": {"voxel_size": 0.02}},
            r"unknown setting 'fusion\.voxel_size', did you mean 'fusion\.voxel_size_m'\?",
        ),
        (
            {"segmentation": {"training_free": {"contrast": {"colour_difference": 1.0}}}},
            r"did you mean 'segmentation\.training_free\.contrast\.color_difference'\?",
        ),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(values, hint):
    with pytest.raises(InputError, match=hint):
        from_dict(PipelineConfig, values)


def test_a_value_of_a_wrong_kind_is_refused_by_name():
    with pytest.raises(InputError, match=r"segmentation\.network\.max_instances"):
        from_dict(PipelineConfig, {"segmentation": {"network": {"max_instances": "many"}}})
