"""Several lists of instances become one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unscene_ros.consensus import ConsensusConfig, agree
from unscene_ros.scene import InputError, Instances

SIZES = np.array([10, 10, 20, 5])
HALVES = (0.5, 0.5)


def instances(*masks, scores, class_ids=None):
    """Masks as texts: "1100" holds the first two of four segments."""
    rows = np.array([[digit == "1" for digit in mask] for mask in masks], bool)
    ids = np.full(len(rows), -1) if class_ids is None else np.array(class_ids)
    return Instances(
        rows.reshape(-1, len(SIZES)), np.array(scores, np.float32), ids.astype(np.int32)
    )


def texts(found):
    return ["".join(str(int(digit)) for digit in mask) for mask in found.masks]


NOTHING = instances(scores=[])


def test_what_both_see_comes_before_what_one_sees_alone():
    first = instances("1000", "0010", scores=[0.8, 0.6])
    second = instances("0010", "0001", scores=[0.6, 0.8])
    found = agree([first, second], HALVES, SIZES, max_overlap=0.5)
    assert texts(found) == ["0010", "1000", "0001"]
    np.testing.assert_allclose(found.scores, [0.6, 0.4, 0.4], rtol=1e-6)


def test_a_similar_mask_supports_by_the_square_of_its_overlap():
    lists = instances("1100", scores=[1.0]), instances("1110", scores=[0.5])
    found = agree(lists, HALVES, SIZES, max_overlap=1)
    overlap = 20 / 40
    assert texts(found) == ["1100", "1110"]
    expected = [0.5 * 1.0 + 0.5 * overlap**2 * 0.5, 0.5 * overlap**2 * 1.0 + 0.5 * 0.5]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_the_shares_decide_whom_to_believe():
    lists = instances("1000", scores=[0.9]), instances("0100", scores=[0.8])
    assert texts(agree(lists, (0.1, 0.9), SIZES, 1, min_score=0.5)) == ["0100"]
    assert texts(agree(lists, (0.9, 0.1), SIZES, 1, min_score=0.5)) == ["1000"]


def test_classes_are_those_of_the_surest_mask_that_has_one():
    named = instances("1000", "0010", scores=[0.5, 0.5], class_ids=[7, 3])
    unnamed = instances("1100", "0001", scores=[0.9, 0.4])
    surer = instances("0010", scores=[0.6], class_ids=[4])
    found = agree([named, unnamed, surer], (0.4, 0.3, 0.3), SIZES, max_overlap=0.9)
    of_mask = dict(zip(texts(found), found.class_ids.tolist(), strict=True))
    assert of_mask == {"1000": 7, "0010": 4, "1100": 7, "0001": -1}


def test_lists_may_be_empty():
    some = instances("1000", "0011", scores=[0.5, 0.9])
    assert texts(agree([some, NOTHING], HALVES, SIZES, 1)) == ["0011", "1000"]
    assert texts(agree([NOTHING, some], HALVES, SIZES, 1)) == ["0011", "1000"]
    assert agree([NOTHING, NOTHING], HALVES, SIZES, 1).masks.shape == (0, len(SIZES))


def test_no_more_are_kept_than_asked_for():
    some = instances("1000", "0100", "0010", scores=[0.5, 0.9, 0.7])
    assert texts(agree([some], [1], SIZES, 1, max_instances=2)) == ["0100", "0010"]


lists = st.lists(
    st.tuples(st.text("01", min_size=4, max_size=4).filter(lambda t: "1" in t), st.floats(0, 1)),
    max_size=5,
).map(lambda pairs: instances(*(m for m, _ in pairs), scores=[s for _, s in pairs]))


@given(lists, lists, st.floats(0, 1), st.floats(0, 1))
def test_scores_fall_and_no_two_masks_overlap_more_than_allowed(first, second, share, overlap):
    found = agree([first, second], (share, 1 - share), SIZES, overlap)
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores >= 0).all() and (found.scores <= 1 + 1e-6).all()
    for i, one in enumerate(found.masks):
        for other in found.masks[:i]:
            common, union = SIZES[one & other].sum(), SIZES[one | other].sum()
            assert common / union <= overlap + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"training_free_share": 1.1}, {"min_score": -0.1}, {"max_instances": -1},
        {"network_scales": ()}, {"network_scales": (1.0, float("nan"))},
    ],
)  # fmt: skip
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(InputError, match=f"segmentation.consensus.{next(iter(wrong))}: expected"):
        ConsensusConfig(**wrong)
