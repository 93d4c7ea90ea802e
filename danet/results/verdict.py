r"""Is a row reproduced? An equivalence test of the seeds' results against the published number.

A published number :math:`p` and a band :math:`d` (0.5 mIoU by default) are declared beforehand. The seeds' results
are taken as independent and normal with unknown mean :math:`\mu` and unknown spread. With :math:`\alpha = 5\,\%`:

* ``reproduced``: two one-sided t-tests (TOST, Schuirmann 1987) at :math:`\alpha` each show :math:`\mu > p - d` and
  :math:`\mu < p + d`, which is the same as the 90 % interval of the mean lying inside the band.
* ``lower``: a t-test at :math:`\alpha / 2` shows :math:`\mu < p - d`: the 95 % interval lies below the band. ``higher``
  likewise above it. Half of :math:`\alpha` each, because a row inside the band can be wronged on both sides.
* ``undecided``: none of these is shown, with the number of further seeds that would decide if mean and spread stayed
  as they are (half of the time more will be needed, since both are estimates).

That is the three-sided test of Goeman, Solari and Stijnen (2010): the probability of a false verdict of any kind
(``reproduced`` although :math:`|\mu - p| > d`; ``lower`` although :math:`\mu \ge p - d`; ``higher`` likewise) is at
most :math:`\alpha` for every true mean and spread. Outside the band, every false verdict needs :math:`\mu` to be shown
on the wrong side of the nearer edge; inside, ``lower`` and ``higher`` have half each.
``tests/results/test_verdict.py`` checks that on 10,000 synthetic rows. A published number that is itself one run of
unknown seed is taken as it is, and is why a band is as wide as single runs were seen to wander (``docs/verdicts.md``).

Where the source gives the results of several seeds, :func:`judge_means` compares two means: the same three tests with
Welch's standard error, :math:`\sqrt{s_1^2/n_1 + s_2^2/n_2}`, and his degrees of freedom, so the two spreads may differ.

One seed has no spread, so nothing can be shown with it: it is ``consistent`` if it lies inside the band, otherwise
``inconsistent``, and no error rate is claimed for either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from danet.config.params import Bands

Label = Literal["reproduced", "lower", "higher", "undecided", "consistent", "inconsistent", "not run"]

ALPHA = 0.05
"""Largest probability of a false verdict."""
BAND = Bands().trained
"""Points of mIoU within which a trained row counts as equal; ``params.yaml`` declares other ones (``bands``)."""
MAX_MORE_SEEDS = 100


@dataclass(frozen=True)
class SeedStatistics:
    """Seeds of a row in numbers; spread and interval are ``None`` for one seed."""

    n: int
    mean: float
    sd: float | None
    """Sample standard deviation (n - 1)."""
    low: float | None
    """Ends of the 95 % interval of the mean, by Student's t."""
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """A label, and for ``undecided`` the number of further seeds needed (``None``: more than can be hoped for)."""

    label: Label
    more_seeds: int | None = None

    @property
    def text(self) -> str:
        """For a cell of a table."""
        if self.label != "undecided":
            return self.label
        if self.more_seeds is None:
            return f"undecided: over {MAX_MORE_SEEDS} more seeds needed"
        return f"undecided: {self.more_seeds} more seed{'s' if self.more_seeds > 1 else ''} needed"


def summarise(values: Sequence[float], confidence: float = 0.95) -> SeedStatistics | None:
    """Mean, spread and interval of the seeds' results; ``None`` without any."""
    if not values:
        return None
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return SeedStatistics(1, mean, None, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _quantile(1 - (1 - confidence) / 2, n) * sd / math.sqrt(n)
    return SeedStatistics(n, mean, sd, mean - half, mean + half)


def judge(values: Sequence[float], published: float, band: float = BAND, alpha: float = ALPHA) -> Verdict:
    """The verdict on seeds' results against a published number, all in the same unit."""
    summary = summarise(values)
    if summary is None:
        return Verdict("not run")
    gap, sd = summary.mean - published, summary.sd
    if sd is None:
        return Verdict("consistent" if abs(gap) <= band else "inconsistent")
    return _decide(gap, band, alpha, summary.n, lambda n, probability: _quantile(probability, n) * sd / math.sqrt(n))


def _decide(gap: float, band: float, alpha: float, n: int, half_width: Callable[[int, float], float]) -> Verdict:
    """Whether ``n`` seeds decide, or how many more would; ``half_width`` is the interval's, for so many seeds."""
    inside = abs(gap) < band
    margin = abs(abs(gap) - band)  # distance of the mean from the nearer end of the band
    for more in range(MAX_MORE_SEEDS + 1):
        if half_width(n + more, 1 - (alpha if inside else alpha / 2)) < margin:
            decided: Label = "reproduced" if inside else "lower" if gap < 0 else "higher"
            return Verdict(decided) if more == 0 else Verdict("undecided", more)
    return Verdict("undecided")


def judge_means(
    values: Sequence[float], published: Sequence[float], band: float = BAND, alpha: float = ALPHA
) -> Verdict:
    """The verdict on our seeds' results against those of the source, all in the same unit: Welch's TOST.

    One published result has no spread: it is judged as a number by :func:`judge`. The further seeds of ``undecided``
    are ours; the source's stay as they are.
    """
    source, summary = summarise(published), summarise(values)
    if source is None or summary is None:
        return Verdict("not run")
    if source.sd is None or summary.sd is None:
        return judge(values, source.mean, band, alpha)
    our_variance, their_error = summary.sd**2, source.sd**2 / source.n

    def half_width(n: int, probability: float) -> float:
        ours = our_variance / n
        error = math.sqrt(ours + their_error)
        # Welch and Satterthwaite; without any spread there is nothing to look up
        freedom = error**4 / (ours**2 / (n - 1) + their_error**2 / (source.n - 1)) if error else 1.0
        return float(special.stdtrit(freedom, probability)) * error

    return _decide(summary.mean - source.mean, band, alpha, summary.n, half_width)


def agreement(measured: float | None, published: float | None, band: float) -> str:
    """Whether released weights, evaluated here, reach the number published with them: only arithmetic can differ.

    ``agrees`` within the band (ends included), else ``differs by +0.12``; empty if one of the two is not known.
    """
    if measured is None or published is None:
        return ""
    gap = measured - published
    # published numbers have two decimals, so exactly the band is a usual gap, and binary fractions must not decide it
    return "agrees" if round(abs(gap), 6) <= band else f"differs by {gap:+.2f}"


@functools.cache
def _quantile(probability: float, n: int) -> float:
    """Student's t for ``n`` values."""
    return float(special.stdtrit(n - 1, probability))
