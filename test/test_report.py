"""The report is one file that needs nothing else, and holds what the run made."""

import base64
import json
import re

import numpy as np
import pytest
from small_report import METRICS, empty_prediction, frame, two_tiles

from unscene_ros import report
from unscene_ros.report import write_report
from unscene_ros.scene import InputError, Mesh
from unscene_ros.storage import Prediction


def data_of(path) -> dict:
    script = re.search(
        r'id="report-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    return json.loads(script.group(1))


def array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_instances_are_listed_with_id_score_size_and_vertices(tmp_path):
    write_report(tmp_path / "report.html", METRICS, two_tiles())
    first, second = data_of(tmp_path / "report.html")["instances"]
    assert (first["id"], first["score"], first["vertices"], first["segments"]) == (
        7,
        0.25,
        100,
        [0],
    )
    assert (second["id"], second["score"], second["classId"]) == (9, 0.75, 3)
    assert first["box"]["size"] == pytest.approx([0.9, 0.9, 0])
    assert second["box"]["center"] == pytest.approx([0.45, 2.45, 0])
    assert first["color"] != second["color"]


def test_the_mesh_comes_back_to_within_the_stored_steps(tmp_path):
    prediction = two_tiles()
    write_report(tmp_path / "report.html", METRICS, prediction)
    mesh = data_of(tmp_path / "report.html")["mesh"]
    places = array(mesh["positions"], "<u2").reshape(-1, 3) / 65535
    assert np.allclose(places * mesh["span"] + mesh["low"], prediction.mesh.vertices, atol=1e-4)
    assert np.array_equal(array(mesh["faces"], "<u4").reshape(-1, 3), prediction.mesh.faces)
    assert np.array_equal(array(mesh["segments"], "<u4"), prediction.segments.of_vertex)
    assert np.array_equal(array(mesh["colors"], "<u1").reshape(-1, 3), prediction.mesh.colors)


def test_the_file_asks_for_nothing_from_elsewhere(tmp_path):
    write_report(tmp_path / "report.html", METRICS, two_tiles(), [frame(np.eye(4))])
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r"(?:src|href)=[\"']?(?!data:)[^\"' >]+", text) == []
    assert "http" not in text and "fetch(" not in text and "import(" not in text


def test_text_from_outside_cannot_end_the_data(tmp_path):
    write_report(tmp_path / "report.html", METRICS, two_tiles())
    assert data_of(tmp_path / "report.html")["title"] == "room </script><b>"


def test_a_camera_held_upright_tells_which_way_is_up(tmp_path):
    prediction = two_tiles()  # in the plane z = 0
    y_up = np.diag([1.0, -1.0, -1.0, 1.0])  # the camera's down is the world's -y
    write_report(tmp_path / "report.html", METRICS, prediction, [frame(y_up)])
    data = data_of(tmp_path / "report.html")
    assert data["mesh"]["span"] == pytest.approx([0, 0.9, 2.9], abs=1e-5)
    z_down = np.eye(4)[[0, 2, 1, 3]] * [[1], [-1], [1], [1]]
    write_report(tmp_path / "report.html", METRICS, prediction, [frame(z_down)])
    assert np.allclose(array(data_of(tmp_path / "report.html")["mesh"]["normals"], "<i1")[2], -127)


def test_cameras_stand_where_the_pictures_were_taken(tmp_path):
    pose = np.array([[1.0, 0, 0, 5], [0, 0, 1, 6], [0, -1, 0, 7], [0, 0, 0, 1]])  # level, along +y
    write_report(tmp_path / "report.html", METRICS, two_tiles(), [frame(pose)])
    data = data_of(tmp_path / "report.html")
    assert data["cameras"][0]["place"] == [5, 6, 7]
    assert data["cameras"][0]["forward"] == [0, 1, 0]
    left, right = data["cameras"][0]["corners"][:2]
    assert left[0] < 5 < right[0] and left[2] > 7
    assert data["pictures"][0]["jpeg"].startswith("data:image/jpeg;base64,")


def test_only_a_few_pictures_are_kept(tmp_path):
    write_report(tmp_path / "report.html", METRICS, two_tiles(), [frame(np.eye(4))] * 50)
    assert len(data_of(tmp_path / "report.html")["pictures"]) == report.PICTURES


def test_a_large_map_is_shown_coarser_with_its_own_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_VERTICES", 60)
    prediction = two_tiles()
    write_report(tmp_path / "report.html", METRICS, prediction)
    data = data_of(tmp_path / "report.html")
    mesh = data["mesh"]
    faces = array(mesh["faces"], "<u4").reshape(-1, 3)
    places = array(mesh["positions"], "<u2").reshape(-1, 3) / 65535 * mesh["span"] + mesh["low"]
    assert 10 < mesh["vertexCount"] == len(places) <= 60
    assert faces.max() < mesh["vertexCount"] and len(faces) > 10
    assert np.array_equal(array(mesh["segments"], "<u4"), places[:, 1] > 1.5)
    assert data["instances"][0]["vertices"] == 100


def test_an_empty_run_and_a_point_cloud_have_reports_too(tmp_path):
    write_report(tmp_path / "empty.html", {}, empty_prediction())
    assert data_of(tmp_path / "empty.html")["mesh"]["vertexCount"] == 0
    tiles = two_tiles()
    cloud = Mesh(
        tiles.mesh.vertices, np.zeros((0, 3), np.int32), tiles.mesh.colors, tiles.mesh.normals
    )
    prediction = Prediction(cloud, tiles.segments, tiles.instances, tiles.track_ids)
    write_report(tmp_path / "cloud.html", METRICS, prediction)
    assert data_of(tmp_path / "cloud.html")["mesh"]["spacing"] == pytest.approx(0.1, abs=1e-3)


def test_a_report_that_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(tmp_path / "missing" / "report.html", METRICS, two_tiles())
