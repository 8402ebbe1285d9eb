import numpy as np
import pytest

from vgg16_xray.trust.intervals import bootstrap_weights, group_numbers, percentile_interval

GROUPS = ["p3", "p1", "p1", "p2", "p3", "p3", "p4"]


def all_weights(groups, **options):
    return np.concatenate(list(bootstrap_weights(groups, **options)))


def test_groups_are_numbered_by_name_whatever_the_order_of_the_films():
    numbers, count = group_numbers(["b", "a", "c", "a"])
    assert numbers.tolist() == [1, 0, 2, 0]
    assert count == 3


def test_films_of_a_group_are_drawn_together():
    weights = all_weights(GROUPS, replicates=50, seed=1)
    assert weights.shape == (50, 7)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 0] != weights[:, 1]).any()


def test_every_replicate_draws_as_many_groups_as_there_are():
    weights = all_weights(GROUPS, replicates=200, seed=1)
    one_film_a_group = weights[:, [0, 1, 3, 6]]
    assert (one_film_a_group.sum(axis=1) == 4).all()
    assert (weights == np.round(weights)).all()
    assert weights.min() == 0


def test_every_group_is_drawn_once_on_average():
    weights = all_weights(GROUPS, replicates=20_000, seed=1)
    # A group's count is binomial (4, 1/4), so its mean over the replicates has a standard error of 0.0061.
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.03)
    assert weights.var(axis=0) == pytest.approx(0.75, abs=0.03)


def test_same_seed_draws_the_same_and_another_seed_does_not():
    first = all_weights(GROUPS, replicates=30, seed=7)
    assert (first == all_weights(GROUPS, replicates=30, seed=7)).all()
    assert (first != all_weights(GROUPS, replicates=30, seed=8)).any()


@pytest.mark.parametrize("chunk", [1, 2, 7, 30, 1000])
def test_size_of_the_chunks_does_not_change_the_draw(chunk):
    chunks = list(bootstrap_weights(GROUPS, replicates=30, seed=7, chunk=chunk))
    assert max(len(weights) for weights in chunks) == min(chunk, 30)
    assert (np.concatenate(chunks) == all_weights(GROUPS, replicates=30, seed=7)).all()


def test_films_that_change_places_take_their_weights_along():
    places = np.random.default_rng(0).permutation(len(GROUPS))
    shuffled = all_weights([GROUPS[i] for i in places], replicates=30, seed=7)
    assert (shuffled == all_weights(GROUPS, replicates=30, seed=7)[:, places]).all()


def test_many_films_come_in_small_chunks():
    chunk = next(bootstrap_weights([str(i) for i in range(100_000)], replicates=1000, seed=1))
    assert chunk.nbytes <= 2 * 2**20


def test_interval_is_the_middle_of_the_replicates():
    low, high = percentile_interval(np.arange(1001.0), level=0.95)
    assert (low, high) == pytest.approx((25, 975))
    low, high = percentile_interval(np.arange(1001.0), level=0.5)
    assert (low, high) == pytest.approx((250, 750))


def test_replicates_without_a_value_are_left_out():
    values = np.full(2002, np.nan)
    values[::2] = np.arange(1001.0)
    assert percentile_interval(values, level=0.95) == pytest.approx((25, 975))


def test_no_replicate_with_a_value_gives_no_interval():
    assert percentile_interval(np.full(10, np.nan), level=0.95) is None


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, float("nan")])
def test_level_outside_0_to_1_is_refused_by_name(level):
    with pytest.raises(ValueError, match="level: must be above 0 and below 1"):
        percentile_interval(np.arange(10.0), level=level)


def test_values_that_are_no_vector_are_refused():
    with pytest.raises(ValueError, match=r"values: must have the shape \(R,\), found \(2, 2\)"):
        percentile_interval(np.ones((2, 2)), level=0.95)


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ([], {"replicates": 1}, "groups: must name the group of at least one film"),
        (["a", None], {"replicates": 1}, "groups: must be strings, found None"),
        (["a", 3], {"replicates": 1}, "groups: must be strings, found 3"),
        (["a"], {"replicates": 0}, "replicates: must be at least 1, found 0"),
        (["a"], {"replicates": 1, "chunk": 0}, "chunk: must be at least 1, found 0"),
    ],
)
def test_unusable_arguments_are_refused_by_name(groups, options, message):
    with pytest.raises(ValueError, match=message):
        list(bootstrap_weights(groups, seed=1, **options))
