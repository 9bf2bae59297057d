"""The interval of an accuracy on a sample of images."""

import math
from statistics import NormalDist

LEVEL = 0.95


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """(low, high): Wilson's (1927) score interval at LEVEL for a proportion in [0, 1] of `count` images."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = round(accuracy * count) / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half if share > 0 else 0.0, middle + half if share < 1 else 1.0  # exact, without rounding
