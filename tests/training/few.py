"""Which parameters of a test are tried in the quick suite."""

import pytest


def few(names, *kept):
  """The parameters `names`, of which all but those `kept` are tried in the slow suite alone."""
  return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]
