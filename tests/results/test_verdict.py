"""The equivalence test, against scipy's own t-tests and by simulation."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from benchmarks import verdict_simulation as simulation
from danet.results.verdict import ALPHA, BAND, MAX_MORE_SEEDS, Verdict, judge, judge_means


def by_scipy(values, published, band):
    """The definition, by scipy's one-sided t-tests: of one sample, or Welch's on shifted values."""

    def shown(shift, side, alpha=ALPHA):
        if isinstance(published, float):
            test = stats.ttest_1samp(values, published + shift, alternative=side)
        else:
            moved = [value + shift for value in published]
            test = stats.ttest_ind(values, moved, equal_var=False, alternative=side)
        return bool(test.pvalue < alpha)

    if shown(-band, "greater") and shown(band, "less"):
        return "reproduced"
    if shown(-band, "less", ALPHA / 2):
        return "lower"
    return "higher" if shown(band, "greater", ALPHA / 2) else "undecided"


@pytest.mark.parametrize("rule", [judge, judge_means])
def test_against_scipys_one_sided_tests(rule):
    random = np.random.default_rng(0)

    def draw(mean):
        return list(random.normal(mean, random.choice([0.05, 0.2, 0.6]), int(random.integers(2, 8))))

    seen = set()
    for _ in range(600):
        values = draw(random.uniform(78.5, 81.5))
        published = 80.0 if rule is judge else draw(80.0)
        label = rule(values, published).label
        assert label == by_scipy(values, published, BAND)
        seen.add(label)
    assert seen == {"reproduced", "lower", "higher", "undecided"}


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


@pytest.mark.parametrize(
    ("values", "published"), [([79.8, 80.6, 79.9], [80.0]), ([79.8, 80.5, 79.9], [79.9, 80.2, 80.0])]
)
def test_more_seeds_are_just_enough(values, published):
    """With so many more seeds of the same mean and spread it would be decided, with one fewer it would not."""
    verdict = judge_means(values, published)
    assert verdict.label == "undecided"
    theirs = len(published)
    first, second = np.var(values, ddof=1), np.var(published, ddof=1) / theirs if theirs > 1 else 0.0
    gap = abs(np.mean(values) - np.mean(published))
    for n, decided in ((3 + verdict.more_seeds, True), (2 + verdict.more_seeds, False)):
        error = first / n + second
        freedom = error**2 / ((first / n) ** 2 / (n - 1) + second**2 / max(theirs - 1, 1))
        assert bool(gap + stats.t.ppf(0.95, freedom) * math.sqrt(error) < BAND) is decided


def test_text_of_undecided():
    assert Verdict("undecided", 1).text == "undecided: 1 more seed needed"
    assert Verdict("undecided", 2).text == "undecided: 2 more seeds needed"
    hopeless = judge([79.4, 79.6], 80.0)  # the mean lies on the edge of the band
    assert hopeless.more_seeds is None
    assert hopeless.text == f"undecided: over {MAX_MORE_SEEDS} more seeds needed"


def most(rows, claimed):
    """Three standard errors of a simulation above what is claimed."""
    return claimed + 3 * math.sqrt(ALPHA * (1 - ALPHA) / rows)


def test_false_verdicts_are_as_rare_as_claimed(monkeypatch):
    """10,000 synthetic rows a case, as `make verdicts` has them.

    Among them the true mean on the edge of the band, where a false "reproduced" is likeliest, and a spread far wider
    than the band, where both sides can be wrong at once.
    """
    monkeypatch.setattr(simulation, "SEEDS", (2, 3, 5))
    found = simulation.fixed(10_000)
    rate, case = simulation.worst(found)
    assert rate <= most(10_000, ALPHA), case
    assert found[0.0, 0.1, 5]["reproduced"] > 5_000 < found[2.0, 0.1, 5]["lower"]  # it does decide when it can


def test_false_verdicts_between_two_means(monkeypatch):
    """5,000 synthetic rows a case, five seeds each. Welch's degrees of freedom are approximate: 6 %."""
    monkeypatch.setattr(simulation, "SEEDS", (5,))
    rate, case = simulation.worst(simulation.two_means(5_000))
    assert rate <= most(5_000, 0.06), case


def test_looking_again_is_less_sound_than_looking_once():
    """What the page says of adding seeds one at a time is what comes out, at the edge of the band."""
    rows = simulation.draw((7,), 1.0, 0.3, simulation.MOST_SEEDS, 1500)
    by_one = sum(simulation.one_by_one(values) == "reproduced" for values in rows) / len(rows)
    advised = sum(simulation.as_advised(values) == "reproduced" for values in rows) / len(rows)
    assert 0.05 < advised < 0.13
    assert by_one > advised


def test_simulation_page():
    page = simulation.page(300)
    assert len(re.findall(r"^\| [\d.]+ \|", page, re.MULTILINE)) == 5 * 4 * (4 + 4 + 2)
    assert f"Random seed {simulation.SEED}; NumPy" in page


def test_one_published_seed_is_a_number():
    for values in ([], [80.1], [79.9, 80.0, 80.05]):
        assert judge_means(values, [80.0]) == judge(values, 80.0)
    assert judge_means([], [80.0, 80.1]).label == "not run"
    assert judge_means([80.0, 80.0], [80.0, 80.0]).label == "reproduced"
    assert judge_means([79.0, 79.0], [80.0, 80.0]).label == "lower"
