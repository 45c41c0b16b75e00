"""Confidence interval of an accuracy measured on a sample of images."""

from __future__ import annotations

from math import sqrt

_Z = 1.959964  # of the standard normal distribution, 95 % between -z and z


def wilson(percent: float, images: int) -> tuple[float, float]:
    """Return the 95% score interval around an accuracy in percent, in percent.

    The formula is E. B. Wilson's, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22
    (1927), 209-212: unlike mean ± 1.96 standard errors it holds for few images and near 0 and 100.
    """
    share = percent / 100
    scale = 1 + _Z**2 / images
    centre = (share + _Z**2 / (2 * images)) / scale
    half = _Z * sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2)) / scale
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
