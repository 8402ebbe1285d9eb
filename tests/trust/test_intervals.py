import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from vgg16_xray.trust.intervals import auroc_interval, bootstrap_weights, group_numbers, percentile_interval

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


# -- the area under the ROC curve


def by_pairs(is_class: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Area and DeLong's variance from every pair, as the paper has it."""
    x, y = scores[is_class], scores[~is_class]
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    return wins.mean(), wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)


def test_the_area_and_its_variance_are_delongs() -> None:
    random = np.random.default_rng(3)
    is_class = random.random(80) < 0.4
    scores = np.round(random.normal(size=80) + is_class, 1)  # with ties
    area, low, high = auroc_interval(is_class, scores, [f"film {i}" for i in range(80)], level=0.95) or (0, 0, 0)
    expected, variance = by_pairs(is_class, scores)
    assert area == pytest.approx(expected) == pytest.approx(roc_auc_score(is_class, scores))
    for bound, sign in ((low, -1), (high, 1)):
        on_logit = np.log(area / (1 - area)) + sign * norm.ppf(0.975) * variance**0.5 / (area * (1 - area))
        assert bound == pytest.approx(1 / (1 + np.exp(-on_logit)))


def test_films_that_all_stand_twice_are_no_news() -> None:
    random = np.random.default_rng(4)
    is_class = random.random(60) < 0.4
    scores, groups = random.normal(size=60) + is_class, [f"patient {i}" for i in range(60)]
    once = auroc_interval(is_class, scores, groups, level=0.95)
    twice = auroc_interval(np.tile(is_class, 2), np.tile(scores, 2), groups * 2, level=0.95)
    assert once is not None
    assert twice == pytest.approx(once, rel=1e-6)


def test_where_nothing_is_known_of_the_area_there_is_no_interval() -> None:
    groups = list("abcdef")
    perfect = np.array([0.0, 0, 0, 1, 1, 1])
    assert auroc_interval(perfect > 0, perfect, groups, level=0.95) is None
    assert auroc_interval(np.array([1, 0, 0, 0, 0, 0]) > 0, perfect, groups, level=0.95) is None


# -- how often intervals hold the truth: nominal 95 %


def test_delongs_intervals_hold_the_true_area_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    truth = norm.cdf(1.5 / np.sqrt(2))  # two normals, 1.5 apart
    is_class = np.arange(150) < 50
    names = [f"film {i}" for i in range(150)]
    found = [auroc_interval(is_class, random.normal(size=150) + 1.5 * is_class, names, level=0.95) for _ in range(2000)]
    assert 0.93 < np.mean([f is not None and f[1] <= truth <= f[2] for f in found]) < 0.97


def test_intervals_of_the_area_hold_the_truth_where_films_come_in_patients() -> None:
    # 60 patients of four films, half of what makes a film is its patient; some patients have films of both kinds.
    random = np.random.default_rng(6)
    patient, truth, held, taken_singly = np.repeat(np.arange(60), 4), norm.cdf(1.2 / np.sqrt(2)), [], []
    names, alone = [f"patient {i}" for i in patient], [f"film {i}" for i in range(240)]
    for _ in range(800):
        is_class = random.random(60)[patient] * 0.8 + random.random(240) * 0.2 < 0.4
        scores = np.sqrt(0.5) * (random.normal(size=60)[patient] + random.normal(size=240)) + 1.2 * is_class
        for groups, into in ((names, held), (alone, taken_singly)):
            _, low, high = auroc_interval(is_class, scores, groups, level=0.95) or (0, 0, 0)
            into.append(low <= truth <= high)
    assert 0.93 < np.mean(held) < 0.97
    assert np.mean(taken_singly) < 0.9, "the simulation must be one in which groups matter"


def test_bootstrap_intervals_of_a_share_hold_the_truth_where_films_come_in_patients() -> None:
    # A patient's films are right with a probability of his own; 80 % on the whole.
    random = np.random.default_rng(7)
    patient = np.repeat(np.arange(100), 3)
    names = [f"patient {i:03d}" for i in patient]
    weights = np.concatenate(list(bootstrap_weights(names, replicates=1000, seed=8)))
    held = []
    for _ in range(2000):
        right = random.random(300) < random.beta(4, 1, size=100)[patient]
        low, high = percentile_interval((weights @ right) / weights.sum(1), level=0.95) or (0, 0)
        held.append(low <= 0.8 <= high)
    assert 0.93 < np.mean(held) < 0.97
