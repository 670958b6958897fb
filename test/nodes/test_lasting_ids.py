import numpy as np
import pytest

from unscene_ros.nodes import lasting_ids
from unscene_ros.nodes.lasting_ids import LastingIds
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.tracking import TrackingConfig

SIDE = 8


class Kept(LastingIds):
    """Maps of square patches, each an object."""

    def __init__(self, folder):
        self.said = []
        super().__init__(TrackingConfig(), folder, lambda subject, text: self.said.append(subject))

    def map(self, map_id, *places):
        """The ids of the patches at these x in metres."""
        x, y = np.meshgrid(np.linspace(0, 0.9, SIDE), np.linspace(0, 0.9, SIDE))
        patch = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
        vertices = np.concatenate([patch + np.array([place, 0, 0]) for place in places]).astype(
            np.float32
        )
        none = np.zeros((0, 3), np.int32)
        mesh = Mesh(vertices, none, np.zeros(vertices.shape, np.uint8), np.zeros_like(vertices))
        of_vertex = np.repeat(np.arange(len(places), dtype=np.int32), SIDE * SIDE)
        count = len(places)
        instances = Instances(
            np.eye(count, dtype=bool), np.ones(count, np.float32), np.full(count, -1, np.int32)
        )
        segments = Segments(of_vertex, none[:, :2], count)
        ids = self.tracker(map_id).update(mesh, segments, instances)
        self.save()
        return dict(zip(places, ids.tolist(), strict=True))


def test_ids_go_on_with_their_map_and_begin_anew_with_another(tmp_path):
    kept = Kept(tmp_path)
    assert kept.map("kitchen", 0, 3) == {0: 1, 3: 2}
    assert kept.map("hall", 3) == {3: 1}
    assert kept.map("kitchen", 3, 6) == {3: 2, 6: 3}
    assert Kept(tmp_path).map("kitchen", 6, 9) == {6: 3, 9: 4}
    assert kept.said == []


def test_without_a_folder_they_last_as_long_as_the_map(tmp_path):
    kept = Kept(None)
    assert kept.map("kitchen", 0, 3) == {0: 1, 3: 2}
    assert kept.map("kitchen", 3) == {3: 2}
    kept.map("hall", 0)
    assert kept.map("kitchen", 3) == {3: 1}


@pytest.mark.parametrize("file", ["damaged", "of another map"])
def test_a_file_that_cannot_be_read_costs_the_ids_and_is_told_once(tmp_path, file):
    kept = Kept(tmp_path)
    kept.map("hall", 0)
    kept.map("kitchen", 9, 0, 3)
    other = b"no file" if file == "damaged" else (tmp_path / "hall.tracks.npz").read_bytes()
    (tmp_path / "kitchen.tracks.npz").write_bytes(other)
    again = Kept(tmp_path)
    for _ in range(2):
        assert again.map("kitchen", 0, 3) == {0: 1, 3: 2}
    assert again.said == ["the objects of this map get new ids"]


def test_files_that_cannot_be_written_are_told(tmp_path):
    kept = Kept(tmp_path / "maps")
    (tmp_path / "maps").write_text("in the way")
    assert kept.map("kitchen", 0) == {0: 1}
    assert kept.said == ["ids are not saved"]


def test_files_of_the_maps_used_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lasting_ids, "MAX_FILES", 2)
    kept = Kept(tmp_path)
    for map_id in ("hall", "kitchen", "hall", "attic"):
        kept.map(map_id, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"hall.tracks.npz", "attic.tracks.npz"}


def test_a_map_id_leads_out_of_no_folder(tmp_path):
    with pytest.raises(InputError, match="evil"):
        Kept(tmp_path / "maps").map("../../evil", 0)
    assert list(tmp_path.rglob("*")) == []
