"""What measures memory in other tests sees a small process grow, and one that was large before."""

import numpy as np
import pytest
from resident import IS_TOLD, child, growth, resident

pytestmark = [pytest.mark.quick, pytest.mark.skipif(not IS_TOLD, reason="needs Linux")]


def test_a_child_that_stays_below_this_process():
    """It holds 10 MB, and takes 60: `getrusage` says that this was so before, of its parent."""
    code = "from resident import growth\ngrown = growth()\nb'x' * (60 << 20)\nprint(grown())"
    assert resident("VmRSS") > 100
    assert 55 < float(child(code).stdout) < 65


def test_this_process_below_what_it_once_took():
    np.ones(200 << 17)  # 200 MB, given back
    grown = growth()
    np.ones(60 << 17)
    assert 55 < grown() < 65
