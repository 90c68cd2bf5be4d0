import signal
import threading

import pytest

from ddpm_jax.training import hosts


@pytest.mark.parametrize(
  ('signum', 'timeout', 'code', 'words'),
  [
    (signal.SIGTERM, 60, 143, 'ended by SIGTERM while it waited for the other hosts'),
    (signal.SIGINT, 60, 130, 'ended by SIGINT while it waited for the other hosts'),
    (None, 0, 1, 'not all of 2 hosts have come within 0 s'),
  ],
)
def test_a_wait_for_the_others_ends_by_a_signal_or_its_time(
  signum, timeout, code, words, monkeypatch, capsys
):
  ended, left = threading.Event(), []
  monkeypatch.setattr(hosts.os, '_exit', lambda code: (left.append(code), ended.set()))
  before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGINT)}
  try:
    with hosts.watched('2 hosts', timeout):
      if signum:
        signal.raise_signal(signum)
      assert ended.wait(10)
  finally:
    for each, handler in before.items():
      signal.signal(each, handler)
  assert left[0] == code and words in capsys.readouterr().err


def test_a_wait_that_ends_well_leaves_nothing_behind(monkeypatch):
  left, threads = [], threading.active_count()
  monkeypatch.setattr(hosts.os, '_exit', left.append)
  with hosts.watched('2 hosts', 60):
    pass
  assert left == [] and threading.active_count() == threads
  assert signal.set_wakeup_fd(-1) == -1
