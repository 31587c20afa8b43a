from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from falcon_unlearn.errors import UsageError
from falcon_unlearn.selection.response import LayerResponse, confirm_choice, summarise_response

EVERY = range(99)


def responses(falls: dict[int, float], error: float = 0.01) -> list[LayerResponse]:
    return [LayerResponse(layer, fall, error) for layer, fall in falls.items()]


def test_the_lowest_layer_that_reaches_the_share_is_taken() -> None:
    falls = responses({4: 0.1, 6: 0.9, 9: 1.5, 11: 1.7})
    settled = confirm_choice(falls, EVERY, 0.5)
    assert (settled.layer, settled.strongest) == (6, 11)
    assert "0.1 at layer 4" in settled.reason and "Layer 6 was taken: the lowest with" in settled.reason
    assert confirm_choice(falls, EVERY, 0.05).layer == 4
    assert confirm_choice(falls, EVERY, 1.0).layer == 11


def test_a_proposed_layer_stands_if_it_reaches_the_share_and_is_replaced_if_not() -> None:
    falls = responses({4: 0.1, 6: 0.9, 9: 1.5, 11: 1.7})
    assert confirm_choice(falls, [9, 11], 0.5).layer == 9
    assert confirm_choice(falls, [4, 11], 0.5).layer == 11
    replaced = confirm_choice(falls, [4], 0.5)
    assert replaced.layer == 6 and "no layer with such a score does" in replaced.reason


def test_the_order_of_the_layers_and_the_unit_do_not_matter() -> None:
    falls = {4: 0.1, 6: 0.9, 9: 1.5, 11: 1.7}
    backwards = dict(reversed(falls.items()))
    scaled = {layer: 100 * fall for layer, fall in falls.items()}
    layers = {
        confirm_choice(responses(falls), EVERY, 0.5).layer,
        confirm_choice(responses(backwards), EVERY, 0.5).layer,
        confirm_choice(responses(scaled, error=1.0), EVERY, 0.5).layer,
    }
    assert layers == {6}


def test_the_lowest_layer_stays_where_it_is_good_enough() -> None:
    assert confirm_choice(responses({7: 1.0, 8: 1.2}), EVERY, 0.5).layer == 7
    assert confirm_choice(responses({7: 1.0, 8: -1.2}), EVERY, 0.5).layer == 7


def test_noise_settles_nothing() -> None:
    assert confirm_choice(responses({4: -0.2, 6: 0.1}, error=0.06), EVERY, 0.5) is None
    assert confirm_choice(responses({4: -0.2, 6: 0.1}, error=0.04), EVERY, 0.5).layer == 6
    assert confirm_choice(responses({4: -0.3, 6: -0.1}, error=0.0), EVERY, 0.5) is None
    assert confirm_choice([], EVERY, 0.5) is None


def test_the_summary_equals_numpy_and_scipy() -> None:
    falls = np.random.default_rng(0).normal(size=24)
    found = summarise_response(3, falls.tolist())
    assert found.fall == pytest.approx(falls.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(falls), rel=1e-12)
    assert summarise_response(3, [0.7]) == LayerResponse(3, 0.7, 0.0)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share must lie in"):
        confirm_choice(responses({4: 1.0}), EVERY, share)


def test_settling_needs_no_torch() -> None:
    script = "import sys; import falcon_unlearn.selection.response; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
