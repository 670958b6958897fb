import math

import pytest
from geometry_msgs.msg import Point, Pose
from unscene_ros.msg import Instance, InstanceArray
from unscene_ros.srv import GetInstances

from unscene_ros.nodes.known_objects import KnownObjects


def instance(identity, x, class_id=-1):
    return Instance(id=identity, class_id=class_id, pose=Pose(position=Point(x=float(x))))


def array(*instances, gone=(), map_id="kitchen", revision=1):
    return InstanceArray(
        map_id=map_id, map_revision=revision, instances=list(instances), gone_ids=list(gone)
    )


@pytest.fixture
def known():
    known = KnownObjects()
    known.update(array(instance(3, 2.0, class_id=5), instance(1, 0.0), instance(7, -4.0)))
    return known


def found(known, **conditions):
    response = known.answer(GetInstances.Request(**conditions))
    assert response.success, response.message
    return [each.id for each in response.instances]


def corners(low, high):
    return [Point(x=low, y=1.0, z=-1.0), Point(x=high, y=-1.0, z=1.0)]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [1, 3, 7]),
        ({"class_ids": [5]}, [3]),
        ({"class_ids": [-1]}, [1, 7]),
        ({"ids": [7, 3, 99]}, [3, 7]),
        ({"box": corners(-0.5, 2.5)}, [1, 3]),
        ({"box": corners(2.5, -0.5)}, [1, 3]),
        ({"point": Point(x=1.5), "max_distance": 1.0}, [3]),
        ({"point": Point(x=1.5), "max_distance": 1.5}, [1, 3]),
        ({"class_ids": [-1], "box": corners(-0.5, 2.5)}, [1]),
    ],
)
def test_objects_that_meet_all_conditions_are_found(known, conditions, expected):
    assert found(known, **conditions) == expected


def test_the_answer_says_of_which_map_it_is_and_how_many_there_are(known):
    response = known.answer(GetInstances.Request(ids=[1]))
    assert (response.map_id, response.map_revision) == ("kitchen", 1)
    assert response.message == "1 of 3 objects"


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"box": [Point()]}, "two opposite corners"),
        ({"box": [Point(), Point(x=math.nan)]}, "box: expected finite"),
        ({"max_distance": -1.0}, "max_distance"),
        ({"max_distance": math.nan}, "max_distance"),
        ({"max_distance": 1.0, "point": Point(z=math.inf)}, "point: expected finite"),
    ],
)
def test_a_condition_without_meaning_is_refused(known, conditions, words):
    response = known.answer(GetInstances.Request(**conditions))
    assert not response.success and not response.instances
    assert words in response.message


def test_an_object_that_one_map_misses_is_still_known_and_one_that_vanished_is_not(known):
    known.update(array(instance(1, 0.1), gone=[7], revision=2))
    assert found(known) == [1, 3]
    assert known.answer(GetInstances.Request(ids=[1])).instances[0].pose.position.x == 0.1


def test_another_map_begins_anew(known):
    known.update(array(instance(1, 5.0), map_id="hall"))
    assert found(known) == [1]


def test_nothing_is_known_before_the_first_map():
    assert found(KnownObjects()) == []
