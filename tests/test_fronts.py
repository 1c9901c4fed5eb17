"""Fronts against independent arithmetic: hypervolume by inclusion and exclusion, dominance by its definition."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pro_core.evaluation.policy.fronts import attainment, front
from pro_core.evaluation.policy.grids import simplex_grid
from pro_core.metrics import hypervolume, igd_plus, is_nondominated

# Few whole numbers, so that ties and equal points come often.
COORDINATE = st.integers(-2, 6).map(float)


@st.composite
def clouds(draw, objectives=None, most=6):
    """Points (N, M) and a reference point (M,)."""
    M, N = objectives or draw(st.integers(1, 4)), draw(st.integers(1, most))
    point = st.lists(COORDINATE, min_size=M, max_size=M)
    points = draw(st.lists(point, min_size=N, max_size=N))
    return np.array(points), np.array(draw(point))


def volume_by_inclusion_and_exclusion(points, ref):
    """The volume of a union of boxes [ref, p]: sums of the intersections' volumes with alternating signs."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for some in combinations(points, size):
            sides = np.min(some, axis=0) - ref
            total += (-1) ** (size + 1) * np.prod(np.clip(sides, 0, None))
    return total


def beats(a, b):
    return (a >= b).all() and (a > b).any()


@settings(max_examples=150, deadline=None)
@given(clouds())
def test_the_hypervolume_is_the_volume_of_the_union_of_boxes(cloud):
    points, ref = cloud
    expected = volume_by_inclusion_and_exclusion(points, ref)
    assert hypervolume(points, ref) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(clouds(), st.integers(0, 5), st.integers(-3, 3))
def test_the_hypervolume_moves_as_it_should(cloud, i, step):
    """Better is more, an equal point adds nothing, moving everything changes nothing, only the front counts."""
    points, ref = cloud
    value = hypervolume(points, ref)
    better = points.copy()
    better[i % len(points)] += 1  # higher is better
    assert hypervolume(better, ref) >= value
    assert hypervolume(np.concatenate([points, points[:1]]), ref) == pytest.approx(value)
    assert hypervolume(points + step, ref + step) == pytest.approx(value)
    assert hypervolume(points[is_nondominated(points)], ref) == pytest.approx(value)


@settings(max_examples=150, deadline=None)
@given(clouds(most=8))
def test_nondominated_is_what_nothing_beats_and_the_first_of_equals(cloud):
    points, _ = cloud
    expected = [
        not any(beats(q, p) for q in points) and not any((q == p).all() for q in points[:i])
        for i, p in enumerate(points)
    ]
    np.testing.assert_array_equal(is_nondominated(points), expected)


@settings(max_examples=100, deadline=None)
@given(clouds(objectives=3), clouds(objectives=3))
def test_igd_plus_is_the_mean_shortfall_to_the_nearest_point(one, other):
    points, reference = one[0], other[0]
    shortfalls = [min(np.linalg.norm(np.clip(r - p, 0, None)) for p in points) for r in reference]
    assert igd_plus(points, reference) == pytest.approx(np.mean(shortfalls))


def test_front_measures_match_a_calculation_by_hand():
    # Above (0, 0): 1 x 3 + (2 - 1) x 2 + (3 - 2) x 1 = 6; (1, 1) lies inside.
    assert hypervolume([[1, 3], [2, 2], [3, 1], [1, 1]], [0, 0]) == pytest.approx(6)
    assert is_nondominated([[1, 3], [2, 2], [3, 1], [1, 1]]).tolist() == [True, True, True, False]
    # Two boxes of 2 x 1 x 1 that share 1 x 1 x 1.
    assert hypervolume([[2, 1, 1], [1, 2, 1]], [0, 0, 0]) == pytest.approx(3)
    # (3, 1) lacks (0, 1) of (2, 2); (1, 1) lacks (1, 1). (4, 4) exceeds it, which counts as 0.
    assert igd_plus([[3, 1], [1, 1]], [[2, 2]]) == pytest.approx(1)
    assert igd_plus([[4, 4]], [[2, 2]]) == 0
    assert hypervolume([[1, 1]], [2, 0]) == 0  # not above the reference point
    assert hypervolume(np.empty((0, 2)), [0, 0]) == 0
    assert hypervolume([[3], [2]], [1]) == 2  # one objective: a length


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_point_is_refused_and_left_out_of_a_front(wrong):
    points = [[1, 2], [wrong, 9], [2, 1], [0, 0]]
    for measure in (is_nondominated, lambda p: hypervolume(p, [0, 0])):
        with pytest.raises(ValueError, match="finite points"):
            measure(points)
    with pytest.raises(ValueError, match="finite points"):
        igd_plus(points, [[1, 1]])
    assert front(points).tolist() == [[1, 2], [2, 1]]
    assert front([[wrong, 1]]).shape == (0, 2)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="reference point"):
        hypervolume([[1, 2]], [0, 0, 0])
    with pytest.raises(ValueError, match="got 0 points"):
        igd_plus(np.empty((0, 2)), [[1, 1]])


# ---------------------------------------------------------------- the grid of weights


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(7, 25))
def test_a_grid_holds_corners_and_centre_and_no_weighting_twice(K, count):
    grid = simplex_grid(K, count)
    assert grid.shape == ((count, K) if K > 1 else (1, 1))
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    assert (grid >= 0).all()
    for row in [*np.eye(K), np.full(K, 1 / K)]:
        assert np.abs(grid - row).sum(axis=1).min() < 1e-9
    gaps = np.linalg.norm(grid[:, None] - grid, axis=2) + np.eye(len(grid))
    assert gaps.min() > 1e-3


def test_experiments_use_the_expected_grids():
    np.testing.assert_allclose(simplex_grid(2, 5)[:, 0], [0, 0.25, 0.5, 0.75, 1])
    full = simplex_grid(5, 13)  # five corners, the centre, seven edges' middles
    assert sorted(np.count_nonzero(full, axis=1)) == [1] * 5 + [2] * 7 + [5]
    assert np.ptp(full.sum(axis=0)) < 0.51  # no objective is asked for much more than another
    for K, count in ((0, 5), (2, 2), (5, 5)):
        with pytest.raises(ValueError, match="expected at least"):
            simplex_grid(K, count)


# ---------------------------------------------------------------- bands over seeds


def test_attainment_matches_a_calculation_by_hand():
    """Three seeds: a corner each way, a middle, and a poor one that all of them attain."""
    surfaces = attainment([[[1, 3], [3, 1]], [[2, 2]], [[0, 0]]])
    assert surfaces["any"].tolist() == [[1, 3], [2, 2], [3, 1]]
    assert surfaces["half"].tolist() == [[1, 2], [2, 1]]  # by the first two seeds
    assert surfaces["all"].tolist() == [[0, 0]]
    one = attainment([[[1, 3], [3, 1], [0, 0]]])
    assert all(s.tolist() == [[1, 3], [3, 1]] for s in one.values())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    st.tuples(COORDINATE, COORDINATE),
)
def test_a_surface_holds_what_that_many_seeds_attain(runs, at):
    attained = sum(any(x >= at[0] and y >= at[1] for x, y in run) for run in runs)
    needed = {"any": 1, "half": -(-len(runs) // 2), "all": len(runs)}
    for name, surface in attainment([np.array(run) for run in runs]).items():
        inside = bool(((surface >= at).all(axis=1)).any())
        assert inside == (attained >= needed[name]), name


def test_a_band_needs_two_objectives_and_a_point():
    with pytest.raises(ValueError, match="shape"):
        attainment([[[1, 2, 3]]])
    with pytest.raises(ValueError, match="shape"):
        attainment([[[np.nan, 1]]])
