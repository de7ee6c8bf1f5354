"""Which new adapters are used: the paired difference in agreement with the votes, and the power of the rule. Pure.

Of n questions, b are gained (only the new policy agrees with the vote) and c are lost; the difference is (b − c) / n.
Its interval is Bonett and Price's (Journal of Educational and Behavioral Statistics 37, 2012): Wald's with one question
more gained and one more lost,

    p = (b + 1) / (n + 2),  q = (c + 1) / (n + 2),   p − q ± z √((p + q − (p − q)²) / (n + 2)),

which Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014) recommend for its coverage, along with Tango's and
Newcombe's, which have no such short form. It has a width even if nothing differs.

From `gate.harm_below` questions on the rule is **non-inferiority**: accepted if the one-sided lower bound is above
−margin. With fewer questions, where that would refuse nearly all adapters, it is a **harm stop**: refused if the
two-sided interval lies below 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import norm

from data.config.sections import GateSection
from data.gate import GateComparison

DISCORDANT = 0.15  # share of questions gained or lost, assumed before any is measured
FALLS = (0.03, 0.06)  # true falls for which the probability of refusal is reported


def non_inferiority(section: GateSection) -> bool:
    """Whether the rule is non-inferiority; else it is the harm stop."""
    return section.questions >= section.harm_below


def z_of(section: GateSection) -> float:
    """The rule's normal quantile: one-sided for non-inferiority, two-sided for the harm stop."""
    return float(norm.ppf(1 - (section.level if non_inferiority(section) else section.level / 2)))


def difference_interval(gained: int, lost: int, n: int, z: float) -> tuple[float, float]:
    """Bonett and Price's interval of (gained − lost) / n, within −1 and 1."""
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def compare_agreement(
    before: Sequence[bool], after: Sequence[bool], against: int, section: GateSection
) -> GateComparison:
    """A new adapter's agreement on n ≥ 1 questions with that of the policy of round `against`, on the same ones.

    Raises ValueError for sequences of different lengths, or without questions.
    """
    pairs, n = list(zip(before, after, strict=True)), len(before)
    if not n:
        raise ValueError("there are no questions to compare on")
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    low, high = difference_interval(gained, lost, n, z_of(section))
    passed = low > -section.margin if non_inferiority(section) else high >= 0
    return GateComparison(
        against, n, sum(before) / n, sum(after) / n, gained, lost, (gained - lost) / n, low, high, passed
    )


def refusal(fall: float, n: int, discordant: float, section: GateSection) -> float:
    """Probability that one comparison refuses an adapter whose agreement truly falls by `fall`, if a share
    `discordant` of the questions is gained or lost; by the normal approximation."""
    variance = max(discordant, fall) - fall**2  # at least as many questions differ as the fall
    error, z = math.sqrt(variance / n), z_of(section)
    if not error:
        return 0.0
    limit = section.margin - z * error if non_inferiority(section) else z * error  # larger observed falls are refused
    return float(norm.cdf((fall - limit) / error))


def power(n: int, discordant: float, section: GateSection) -> dict[str, float]:
    """The rule's power with n questions: {"fall of 3 points refused": probability, …, "unchanged accepted": …}.
    It is that of one comparison: an adapter compared with both the policy before and the untouched peer is refused more
    often.
    """
    falls = {f"fall of {100 * fall:g} points refused": refusal(fall, n, discordant, section) for fall in FALLS}
    found = {**falls, "unchanged accepted": 1 - refusal(0.0, n, discordant, section)}
    return {what: round(value, 3) for what, value in found.items()}
