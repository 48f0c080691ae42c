"""How often the bound on copies among accepted images is violated, where all rates are known.

    python benchmarks/copies_bound.py [--trials 1000]

Verified prompts have 8 copies each and miss rates of their own, beta-distributed about a common
mean; a new prompt's miss rate is that mean (the assumption of the bound).  Images of a prompt are
alike to a correlation: of each prompt a random share of its noises moves together.  Shown are how
often the upper limit of the miss rate lies below the true mean (2.5% allowed), that of a binomial
limit over pooled images, how often the lower limit of the pass rate lies above the true one (2.5%),
and how often the share of copies among accepted images exceeds its bound (5%).
"""

import argparse

import numpy as np
from scipy.special import betaincinv

from sharpjax.mitigation.copies_bound import copies_bound, miss_rate, pass_rate

COPIES, IMAGES, TRIES = 8, 8, 16


def pooled(passed, copies, alpha=0.025):
    """Clopper and Pearson's upper limit over all images."""
    return 1.0 if passed >= copies else betaincinv(passed + 1, copies - passed, 1 - alpha)


def simulated(rng, trials, prompts, mean, spread, share):
    """The four rates of a setting; `spread` is the correlation of a prompt's images."""
    a = mean * (1 / spread - 1)
    b = (1 - mean) * (1 / spread - 1)
    missed = pooled_missed = low = broken = 0
    for _ in range(trials):
        passed = rng.binomial(COPIES, rng.beta(a, b, prompts))
        found = miss_rate(passed, np.full(prompts, COPIES))
        missed += found.upper < mean
        pooled_missed += pooled(passed.sum(), COPIES * prompts) < mean
        # a new prompt: `share` of its noises would copy; its other images always pass
        rate = share * mean + 1 - share
        tries = np.minimum(rng.geometric(rate, IMAGES), TRIES + 1)
        accepted = int((tries <= TRIES).sum())
        rates = pass_rate(accepted, int(np.minimum(tries, TRIES).sum()))
        low += rates.low > rate
        broken += share * mean / rate > copies_bound(found, rates)
    return [count / trials for count in (missed, pooled_missed, low, broken)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000, help="of each setting")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'prompts':>8}{'miss':>7}{'corr.':>7}{'share':>7}{'limit':>9}{'pooled':>9}{'P_low':>9}"
          f"{'bound':>9}")  # fmt: skip
    for prompts in (10, 30, 60):
        for mean, spread in ((0.02, 0.2), (0.05, 0.2), (0.05, 0.5), (0.2, 0.3)):
            for share in (0.5, 0.95):
                rates = simulated(rng, options.trials, prompts, mean, spread, share)
                cells = "".join(f"{100 * rate:8.1f}%" for rate in rates)
                print(f"{prompts:8d}{mean:7.2f}{spread:7.2f}{share:7.2f}{cells}", flush=True)


if __name__ == "__main__":
    main()
