"""The equivalence test, against scipy's own t-tests and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from danet.results.verdict import ALPHA, BAND, MAX_MORE_SEEDS, Verdict, judge, judge_means, summarise

finite = st.floats(min_value=0, max_value=100, allow_nan=False)


def by_scipy(values, published, band):
    """The definition, by scipy's one-sided t-tests."""

    def shown(bound, side, alpha=ALPHA):
        return bool(stats.ttest_1samp(values, bound, alternative=side).pvalue < alpha)

    if shown(published - band, "greater") and shown(published + band, "less"):
        return "reproduced"
    if shown(published - band, "less", ALPHA / 2):
        return "lower"
    return "higher" if shown(published + band, "greater", ALPHA / 2) else "undecided"


def test_against_scipys_one_sided_tests():
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(600):
        n = int(random.integers(2, 9))
        values = list(random.normal(random.uniform(78.5, 81.5), random.choice([0.05, 0.2, 0.6]), n))
        label = judge(values, 80.0).label
        assert label == by_scipy(values, 80.0, BAND)
        seen.add(label)
    assert seen == {"reproduced", "lower", "higher", "undecided"}


def test_hand_computed_interval():
    # mean 80, sd 1, n 4: t(0.975, 3) = 3.182446, half width 3.182446 * 1 / 2
    summary = summarise([79.0, 81.0, 80.0 - math.sqrt(0.5), 80.0 + math.sqrt(0.5)])
    assert summary is not None
    assert summary.mean == pytest.approx(80)
    assert summary.sd == pytest.approx(1)
    assert summary.low == pytest.approx(80 - 1.591223)
    assert summary.high == pytest.approx(80 + 1.591223)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "not run"),
        ([80.5], "consistent"),
        ([79.5], "consistent"),
        ([79.49], "inconsistent"),
        ([80.51], "inconsistent"),
        ([80.0, 80.0], "reproduced"),
        ([79.0, 79.01, 79.02], "lower"),
        ([81.0, 81.01, 81.02], "higher"),
    ],
)
def test_labels(values, text):
    assert judge(values, 80.0).text == text


def test_one_seed_is_never_reproduced():
    assert {judge([value], 80.0).label for value in np.linspace(70, 90, 401)} == {"consistent", "inconsistent"}


def test_more_seeds_are_just_enough():
    """With so many more seeds of the same mean and spread it would be decided, with one fewer it would not."""
    values = [79.8, 80.6, 79.9]
    verdict = judge(values, 80.0)
    assert verdict.label == "undecided"
    assert verdict.more_seeds is not None
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    for n, decided in ((3 + verdict.more_seeds, True), (2 + verdict.more_seeds, False)):
        half = stats.t.ppf(0.95, n - 1) * sd / math.sqrt(n)
        inside = mean - half > 80 - BAND and mean + half < 80 + BAND
        assert bool(inside) is decided
    assert verdict.text == f"undecided: {verdict.more_seeds} more seeds needed"


def test_text_of_undecided():
    assert Verdict("undecided", 1).text == "undecided: 1 more seed needed"
    hopeless = judge([79.4, 79.6], 80.0)  # the mean lies on the edge of the band
    assert hopeless.more_seeds is None
    assert hopeless.text == f"undecided: over {MAX_MORE_SEEDS} more seeds needed"


@given(st.lists(finite, min_size=1, max_size=6), finite)
def test_mirror_image(values, published):
    mirrored = judge([100 - value for value in values], 100 - published)
    swap = {"lower": "higher", "higher": "lower"}
    label = judge(values, published).label
    edge = abs(abs(float(np.mean(values)) - published) - BAND) < 1e-6  # where rounding decides
    assert edge or mirrored.label == swap.get(label, label)


@pytest.mark.parametrize("offset", [0.0, 0.499, 0.5, 1.5])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spreads", [[0.05, 0.1, 0.3, 0.8], [20.0]])
def test_false_verdicts_are_as_rare_as_claimed(offset, seeds, spreads):
    """10,000 synthetic rows per case: true mean at an offset from the published number, spread drawn per row.

    At offset 0.5 the true mean is on the edge of the band, where a false "reproduced" is most likely. With a spread far
    wider than the band both sides can be wrong at once, at half of alpha each.
    """
    random = np.random.default_rng([int(offset * 100), seeds])
    rows = 10_000
    spread = random.choice(spreads, size=rows)
    values = 80.0 - offset + spread[:, None] * random.standard_normal((rows, seeds))
    labels = [judge(list(row), 80.0).label for row in values.tolist()]
    false = {"higher", "reproduced" if offset >= BAND else "lower"}
    rate = sum(label in false for label in labels) / rows
    # three standard errors of the simulation itself
    assert rate <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / rows)
    if offset in {0.0, 1.5} and seeds == 5 and len(spreads) > 1:  # and it does decide when it can
        assert labels.count("reproduced" if offset == 0.0 else "lower") > rows / 2


def welch_by_scipy(values: list[float], published: list[float], band: float) -> str:
    """The definition, by scipy's one-sided Welch tests on shifted values."""

    def shown(shift: float, side: str, alpha: float = ALPHA) -> bool:
        moved = [value + shift for value in published]
        return bool(stats.ttest_ind(values, moved, equal_var=False, alternative=side).pvalue < alpha)

    if shown(-band, "greater") and shown(band, "less"):
        return "reproduced"
    if shown(-band, "less", ALPHA / 2):
        return "lower"
    return "higher" if shown(band, "greater", ALPHA / 2) else "undecided"


def test_two_means_against_scipys_welch_tests() -> None:
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(600):
        n, m = (int(count) for count in random.integers(2, 7, 2))
        published = list(random.normal(80.0, random.choice([0.05, 0.2, 0.6]), m))
        values = list(random.normal(random.uniform(78.5, 81.5), random.choice([0.05, 0.2, 0.6]), n))
        label = judge_means(values, published).label
        assert label == welch_by_scipy(values, published, BAND)
        seen.add(label)
    assert seen == {"reproduced", "lower", "higher", "undecided"}


def test_two_means_with_more_seeds() -> None:
    values, published = [79.8, 80.5, 79.9], [79.9, 80.2, 80.0]
    verdict = judge_means(values, published)
    assert verdict.label == "undecided"
    assert verdict.more_seeds is not None
    first, second = float(np.var(values, ddof=1)), float(np.var(published, ddof=1)) / 3
    gap = abs(float(np.mean(values)) - float(np.mean(published)))
    for n, decided in ((3 + verdict.more_seeds, True), (2 + verdict.more_seeds, False)):
        error = first / n + second
        freedom = error**2 / ((first / n) ** 2 / (n - 1) + second**2 / 2)
        assert bool(gap + stats.t.ppf(0.95, freedom) * math.sqrt(error) < BAND) is decided


def test_one_published_seed_is_a_number() -> None:
    for values in ([], [80.1], [79.9, 80.0, 80.05]):
        assert judge_means(values, [80.0]) == judge(values, 80.0)
    assert judge_means([], [80.0, 80.1]).label == "not run"
    assert judge_means([80.0, 80.0], [80.0, 80.0]).label == "reproduced"
    assert judge_means([79.0, 79.0], [80.0, 80.0]).label == "lower"


@pytest.mark.parametrize("offset", [0.0, 0.499, 0.5, 1.5])
@pytest.mark.parametrize("spreads", [(0.3, 0.3), (0.1, 0.6), (8.0, 8.0)])
def test_false_verdicts_between_two_means(offset: float, spreads: tuple[float, float]) -> None:
    """5,000 synthetic rows a case, five seeds each. Welch's degrees of freedom are approximate: 6 %."""
    random, rows = np.random.default_rng([int(offset * 1000), int(spreads[0] * 10)]), 5_000
    published = 80.0 + spreads[0] * random.standard_normal((rows, 5))
    values = 80.0 - offset + spreads[1] * random.standard_normal((rows, 5))
    labels = [judge_means(ours, theirs).label for ours, theirs in zip(values.tolist(), published.tolist(), strict=True)]
    false = {"higher", "reproduced" if offset >= BAND else "lower"}
    rate = sum(label in false for label in labels) / rows
    assert rate <= 0.06 + 3 * math.sqrt(ALPHA * (1 - ALPHA) / rows)
