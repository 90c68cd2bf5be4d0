import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ddpm_jax.ablation.figures import LIGHT, Panel, bars, curves, plain, ratios, render
from ddpm_jax.ablation.metrics import metric
from ddpm_jax.ablation.results import Figure as Results
from ddpm_jax.ablation.results import make_rows


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


@pytest.mark.parametrize('label', ['$', '/data/$x_{/y$.npz', r'a\$b$', '$$', 'x^2 and $x^2$'])
def test_a_label_is_shown_as_it_is(label):
  """As by matplotlib's own switch for text without mathematics."""
  pictures = []
  for text, options in ((plain(label), {}), (label, {'parse_math': False})):
    figure, file = Figure(figsize=(3, 1)), io.BytesIO()
    figure.text(0.1, 0.4, text, **options)
    figure.savefig(file, format='png')
    pictures.append(np.asarray(Image.open(file).convert('L')))
  assert pictures[0].min() < 128
  np.testing.assert_array_equal(*pictures)


def test_every_plot_survives_dollars():
  labels = ['/data/$x_{/y$.npz', '$', 'a']
  rows = make_rows(labels, [{0: 1.0, 1: 1.2}, {0: 2.0, 1: 2.1}, {0: 3.0, 1: np.nan}], -1, 0)
  results = Results('eps_mse/-2 to 0', metric('eps_mse/-2 to 0'), rows, 0)
  lines = [(number, [(1, 0.9), (2, 0.5)]) for number in range(3)]
  draws = (bars(results), curves(labels, lines), ratios([results]))
  panels = [Panel('a', labels[0], draw) for draw in draws]
  assert render(panels, LIGHT).startswith(b'\x89PNG')
