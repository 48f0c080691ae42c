"""Numbers as people read them: no more digits than their error leaves."""

import numpy as np


def with_error(value: float, error: float) -> str:
    """A value ± its standard error, to the second digit of that; without one, to four digits.

    >>> with_error(1.70535, 0.28187), with_error(981.2, 31.4), with_error(0.5, float("nan"))
    ('1.71 ± 0.28', '981 ± 31', '0.5')
    """
    if not 0 < error < np.inf:
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def p_value(p: float) -> str:
    """To three digits behind the point; never 0, and nothing of NaN.

    >>> p_value(0.0412), p_value(0.0002), p_value(float("nan"))
    ('0.041', '< 0.001', '')
    """
    if np.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(low: float, high: float) -> str:
    """Its ends, to four digits; open ones are infinite.

    >>> interval(1.34567, 2.0), interval(1.34567, float("inf"))
    ('1.346 to 2', '1.346 to open')
    """
    return " to ".join(f"{end:.4g}" if np.isfinite(end) else "open" for end in (low, high))
