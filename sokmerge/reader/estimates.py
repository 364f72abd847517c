"""Measured numbers with their uncertainty, and what may be concluded from them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from sokmerge.errors import ArgumentError
from sokmerge.reader.digits import significant, with_interval

__all__ = ["Estimate", "Test", "Verdict", "REPLICATES"]

REPLICATES = 5
"""A claim rests on this many independent replicates or more."""

CONFIDENCE = 0.95


class Verdict:
    """The three words a test or a claim can end in."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    INCONCLUSIVE = "inconclusive at this scale"


@dataclass(frozen=True, slots=True)
class Test:
    """An estimate held against a threshold: is it on the predicted side of it?

    Supported if the whole interval lies on that side, not supported if the whole interval lies
    on the other, inconclusive otherwise, and always inconclusive on fewer than five replicates.
    It has no truth value, for it knows three answers: read ``verdict``.

    >>> gain = Estimate.of([0.9, 1.1, 1.0, 1.2, 0.8], label="gain")
    >>> (gain > 0).verdict, (gain < 0.5).verdict, (gain > 1).verdict
    ('supported', 'not supported', 'inconclusive at this scale')
    """

    __test__ = False  # pytest would otherwise take it for a test case

    estimate: Estimate
    relation: str
    threshold: float

    @property
    def verdict(self) -> str:
        """One of the words of :class:`Verdict`."""
        low, high, bound = self.estimate.low, self.estimate.high, self.threshold
        if self.estimate.n < REPLICATES:
            return Verdict.INCONCLUSIVE
        below, above = high < bound, low > bound
        holds, fails = (below, above) if self.relation == "<" else (above, below)
        if holds:
            return Verdict.SUPPORTED
        return Verdict.NOT_SUPPORTED if fails else Verdict.INCONCLUSIVE

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, in one clause."""
        if self.estimate.n < REPLICATES:
            return f"it rests on {self.estimate.n} replicates; a claim needs {REPLICATES}"
        bound, wrong = significant(self.threshold), ">" if self.relation == "<" else "<"
        return {
            Verdict.SUPPORTED: f"the whole interval is {self.relation} {bound}",
            Verdict.NOT_SUPPORTED: f"the whole interval is {wrong} {bound}, against the prediction",
            Verdict.INCONCLUSIVE: f"the interval contains {bound}",
        }[self.verdict]

    def __str__(self) -> str:
        return f"{self.estimate.label or 'estimate'} {self.relation} {significant(self.threshold)}"

    def __bool__(self) -> bool:
        raise ArgumentError(
            "test",
            found=f"'{self}' used as true or false",
            expected="its verdict, which may also be inconclusive",
            do="Read .verdict, or give the test to a Claim.",
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over replicates with its 95 % interval.

    Comparing one with a number, ``estimate < 0.05``, gives a :class:`Test`.

    Attributes:
        label: what was measured, in words.
        mean: the mean over the replicates.
        low, high: ends of the 95 % interval.
        n: number of independent replicates (networks, when the values are of pairs of networks).
        method: how the interval was made, in words.
        unit: of the values, such as ``"nats"``; empty for a plain number.
    """

    label: str
    mean: float
    low: float
    high: float
    n: int
    method: str
    unit: str = ""

    @classmethod
    def of(cls, samples: Sequence[float], *, label: str = "", unit: str = "") -> Estimate:
        r"""Estimate a mean from independent samples, with Student's t interval.

        .. math:: \bar x \pm t_{n-1,\,0.975}\; s/\sqrt n,
                  \qquad s^2 = \frac{1}{n-1}\sum_i (x_i - \bar x)^2 .

        Args:
            samples: one finite number for each independent replicate, at least two.
            label: what was measured.
            unit: of the samples.

        Raises:
            ArgumentError: fewer than two samples, or one that is NaN or infinite.

        Source: Student (1908), The probable error of a mean, Biometrika 6.

        >>> print(Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0], label="x"))
        x: 3.0 [1.0, 5.0] (n = 5)
        """
        x = _finite(samples, "samples")
        if len(x) < 2:
            raise ArgumentError(
                "samples",
                found=f"{len(x)} of them",
                expected="at least 2, for one alone has no spread",
                do=f"A claim needs {REPLICATES} replicates.",
            )
        return cls._around(float(x.mean()), x, label, "Student t interval", unit)

    @classmethod
    def of_pairs(
        cls,
        values: Mapping[tuple[Hashable, Hashable], float],
        *,
        label: str = "",
        unit: str = "",
    ) -> Estimate:
        r"""Estimate a mean over pairs of networks, with a delete-one-network jackknife interval.

        Pairs that share a network are not independent: ten pairs of five networks are worth five
        replicates, not ten. With :math:`n` networks and a value :math:`h_{ij}` for every pair,

        .. math::
            U = \binom n2^{-1} \sum_{i<j} h_{ij}, \qquad
            U_{-k} = \binom{n-1}2^{-1} \sum_{i<j;\; i,j\ne k} h_{ij}, \qquad
            P_k = n\,U - (n-1)\,U_{-k},

        the pseudo-values :math:`P_k` have the mean :math:`U` and give the interval

        .. math:: U \pm t_{n-1,\,0.975}\; s_P/\sqrt n .

        The jackknife's variance is never too small on average (Efron & Stein, 1981).

        Args:
            values: ``(i, j)`` to a finite number, for every pair of the networks that occur, each
                pair in one order only.
            label: what was measured.
            unit: of the values.

        Raises:
            ArgumentError: fewer than three networks, a pair is missing, given twice or of a
                network with itself, or a value is NaN or infinite.

        Source: Arvesen (1969), Jackknifing U-statistics, Annals of Mathematical Statistics 40,
        section 2; Efron & Stein (1981), The jackknife estimate of variance, Annals of Statistics 9.

        For the kernel :math:`h_{ij} = x_i + x_j` it is the t interval of :math:`2\bar x`:

        >>> x = [1.0, 2.0, 3.0, 4.0, 5.0]
        >>> sums = {(i, j): x[i] + x[j] for i in range(5) for j in range(i)}
        >>> pairs, direct = Estimate.of_pairs(sums), Estimate.of([2 * value for value in x])
        >>> round(pairs.low - direct.low, 9), round(pairs.high - direct.high, 9), pairs.n
        (0.0, 0.0, 5)
        """
        names, matrix = _pair_matrix(values)
        n = len(names)
        u = matrix.sum() / (n * (n - 1))
        without = (matrix.sum() - 2 * matrix.sum(axis=1)) / ((n - 1) * (n - 2))
        pseudo = n * u - (n - 1) * without
        return cls._around(float(u), pseudo, label, "delete-one-network jackknife interval", unit)

    @classmethod
    def of_differences(
        cls,
        first: Sequence[float] | Mapping[tuple[Hashable, Hashable], float],
        second: Sequence[float] | Mapping[tuple[Hashable, Hashable], float],
        *,
        label: str = "",
        unit: str = "",
    ) -> Estimate:
        """Estimate the mean of paired differences, ``first - second``, replicate by replicate.

        Two measurements of the same replicates vary together; their differences have the smaller
        spread. Both arguments are samples (see :meth:`of`) or both are mappings of pairs of
        networks (see :meth:`of_pairs`).

        Raises:
            ArgumentError: the two do not hold the same replicates.

        >>> print(Estimate.of_differences([3.1, 4.0, 5.2, 6.1, 7.0], [2, 3, 4, 5, 6], label="gap"))
        gap: 1.08 [0.98, 1.18] (n = 5)
        """
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            if other := set(first) ^ set(second):
                raise ArgumentError(
                    "second",
                    found=f"other pairs than in first: {sorted(map(str, other))}",
                    expected="the same pairs in both",
                )
            pairs = {pair: first[pair] - second[pair] for pair in first}
            return cls.of_pairs(pairs, label=label, unit=unit)
        if isinstance(first, Mapping) or isinstance(second, Mapping) or len(first) != len(second):
            raise ArgumentError(
                "second",
                found="other replicates than in first",
                expected="one value for each replicate of first, in the same order",
            )
        differences = _finite(first, "first") - _finite(second, "second")
        return cls.of(list(differences), label=label, unit=unit)

    @classmethod
    def pooled(cls, estimates: Sequence[Estimate]) -> Estimate:
        r"""Pool estimates of one quantity from separate groups of replicates, such as two zoos.

        With the standard errors :math:`s_g` of the groups' means :math:`U_g`,

        .. math::
            U = \frac1G \sum_g U_g, \qquad s^2 = \frac1{G^2} \sum_g s_g^2, \qquad
            U \pm t_{\nu,\,0.975}\; s, \qquad \nu = \sum_g (n_g - 1).

        Groups of one size and one spread are pooled as in a two-sample t interval.

        Args:
            estimates: one or more, each with an interval by Student's t, in one unit.

        Raises:
            ArgumentError: none is given, units differ, or one has fewer than two replicates.

        >>> pooled = Estimate.pooled([Estimate.of([1.0, 3.0]), Estimate.of([3.0, 5.0])])
        >>> pooled.mean, pooled.n, round(pooled.high, 2)
        (3.0, 4, 6.04)
        """
        given = list(estimates)
        units = {each.unit for each in given}
        if len(units) != 1 or min(each.n for each in given) < 2:
            raise ArgumentError(
                "estimates",
                found=f"{len(given)} of them, in units {sorted(units)}",
                expected="one or more in one unit, of two replicates or more each",
            )
        free = sum(each.n - 1 for each in given)
        errors = [
            (each.high - each.low) / 2 / stdtrit(each.n - 1, (1 + CONFIDENCE) / 2)
            for each in given
        ]
        mean = sum(each.mean for each in given) / len(given)
        half = float(stdtrit(free, (1 + CONFIDENCE) / 2) * math.hypot(*errors) / len(given))
        n, first = sum(each.n for each in given), given[0]
        method = f"{first.method}, groups pooled" if len(given) > 1 else first.method
        return cls(first.label, mean, mean - half, mean + half, n, method, first.unit)

    @classmethod
    def _around(
        cls, mean: float, values: np.ndarray, label: str, method: str, unit: str
    ) -> Estimate:
        n = len(values)
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n))
        return cls(label, mean, mean - half, mean + half, n, f"95 % {method}", unit)

    def __lt__(self, threshold: float) -> Test:
        return Test(self, "<", _threshold(threshold))

    def __gt__(self, threshold: float) -> Test:
        return Test(self, ">", _threshold(threshold))

    @property
    def interval(self) -> str:
        """The mean and its interval with its unit, to the digits that they support."""
        mean, low, high = with_interval(self.mean, self.low, self.high)
        return f"{mean} [{low}, {high}]" + (f" {self.unit}" if self.unit else "")

    def __str__(self) -> str:
        return f"{self.label + ': ' if self.label else ''}{self.interval} (n = {self.n})"


def _finite(samples: Sequence[float], name: str) -> np.ndarray:
    x = np.asarray([float(sample) for sample in samples], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(x))
    if len(bad):
        raise ArgumentError(
            name,
            found=f"{x[bad[0]]} at position {bad[0]}",
            expected="finite numbers",
            do="A replicate that failed must be reported, not averaged.",
        )
    return x


def _threshold(threshold: float) -> float:
    if isinstance(threshold, Estimate):
        raise ArgumentError(
            "threshold",
            found=f"another estimate, {threshold}",
            expected="a number",
            do="Compare two measurements by Estimate.of_differences(first, second) > 0.",
        )
    return float(_finite([threshold], "threshold")[0])


def _pair_matrix(
    values: Mapping[tuple[Hashable, Hashable], float],
) -> tuple[list[Hashable], np.ndarray]:
    """Return the networks and the symmetric matrix of their pairs' values, zero on the diagonal."""
    names = list(dict.fromkeys(name for pair in values for name in pair))
    if len(names) < 3:
        raise ArgumentError(
            "values",
            found=f"pairs of {len(names)} networks",
            expected="all pairs of at least 3, so that one can be left out",
            do="For separate pairs that share no network use Estimate.of.",
        )
    place = {name: index for index, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 0.0)
    for (first, second), value in zip(
        values, _finite(list(values.values()), "values"), strict=True
    ):
        i, j = place[first], place[second]
        if i == j or not np.isnan(matrix[i, j]):
            raise ArgumentError(
                "values",
                found=f"({first!r}, {second!r}), "
                + ("a network with itself" if i == j else "a pair that is there in both orders"),
                expected="each pair of different networks once",
            )
        matrix[i, j] = matrix[j, i] = value
    missing = np.argwhere(np.isnan(matrix))
    if len(missing):
        i, j = missing[0]
        raise ArgumentError(
            "values",
            found=f"no value for the pair ({names[i]!r}, {names[j]!r})",
            expected=f"all {len(names) * (len(names) - 1) // 2} pairs of {len(names)} networks",
        )
    return names, matrix
