import numpy as np
import pytest
from matplotlib.figure import Figure

from ddpm_jax.ablation.figures import LIGHT, curves


@pytest.mark.parametrize('span', [1.2, 1.9, 5.0, 300.0])
def test_an_axis_can_be_read_however_little_it_spans(span):
  figure = Figure()
  axes = figure.subplots()
  curves(['a'], [(0, [(1, 0.9), (2, 0.9 * span)])])(axes, LIGHT)
  figure.draw_without_rendering()
  low, high = axes.get_ylim()
  shown = [
    value
    for which in (axes.yaxis.get_major_ticks(), axes.yaxis.get_minor_ticks())
    for tick in which
    if tick.label1.get_text() and low <= (value := tick.get_loc()) <= high
  ]
  assert len(shown) >= 2
  assert np.ptp(np.log(shown)) > 0.4 * np.log(high / low), 'over much of it'
