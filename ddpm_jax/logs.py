"""What a program says: shown on its terminal, which may go away, and kept in a log of its own.

A terminal goes away with a lost connection, a closed window or a reader that has ended (`| head`).
A run of hours is not to end by that: what it says then goes to its log alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pathlib
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

from ddpm_jax.errors import Failed, InputError, Interrupted
from ddpm_jax.stores import is_store

_logger = logging.getLogger('ddpm_jax')
FORMAT = '%(asctime)s  %(message)s'


def say(line: str) -> None:
  """Prints a line, and notes it."""
  print(line, flush=True)
  note(line)


def note(text: str) -> None:
  """Adds to the log of this process, where one is open."""
  _logger.info('%s', text)


def open_log(path: pathlib.Path) -> None:
  """Keeps a log from now on, after what is in the file: what is noted, and every warning.

  Where the runtime ends the program by a fault, the log gets the Python stack. A log that cannot be
  written is told of, and ends nothing.
  """
  try:
    close_log()
    path.parent.mkdir(parents=True, exist_ok=True)
    log = Log(path)
  except OSError as error:
    say(f'{path}: left out, as it cannot be written ({error.strerror})')
    return
  for logger in (_logger, logging.root):
    logger.addHandler(log)
  _logger.setLevel(logging.INFO)
  _logger.propagate = False  # or the terminal would show it twice


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Closes the log that is opened meanwhile, after a last word on what ended the work."""
  try:
    yield
  except (InputError, Failed, Interrupted) as error:
    note(' '.join(str(error).split()))
    raise
  except (Exception, KeyboardInterrupt):
    note(traceback.format_exc())
    raise
  finally:
    close_log()


def close_log() -> None:
  """Closes the log, where one is open."""
  for log in [log for log in _logger.handlers if isinstance(log, Log)]:
    _logger.removeHandler(log)
    logging.root.removeHandler(log)
    log.close()


class Log(logging.Handler):
  """A file that grows line by line; it is closed after each, for a mounted bucket has it then."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.setFormatter(logging.Formatter(FORMAT))
    self._path = path
    self._faults = path.open('a', encoding='utf-8')
    self._has_faults = not faulthandler.is_enabled()
    if self._has_faults:
      faulthandler.enable(self._faults)

  def emit(self, record: logging.LogRecord) -> None:
    """Adds a line, or goes on without it: a full disk is the checkpoints' to tell of."""
    with contextlib.suppress(OSError), self._path.open('a', encoding='utf-8') as lines:
      lines.write(self.format(record) + '\n')

  def close(self) -> None:
    """Closes the file."""
    if self._has_faults:
      faulthandler.disable()
    self._faults.close()
    super().close()


def log_of(workdir: str | os.PathLike[str], host: int) -> pathlib.Path:
  """logs/host-0.txt in a run's folder; where that is an object store, on the disk of the host."""
  folder = str(workdir)
  if is_store(folder):
    place = folder.partition('://')[2].strip('/')
    folder = os.path.join(tempfile.gettempdir(), f'ddpm_jax-{os.getuid()}', place)
  return pathlib.Path(folder) / 'logs' / f'host-{host}.txt'


class Terminal:
  """A stream that is written to as before; once it refuses, what is written to it goes nowhere."""

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes where it can."""
    try:
      return self._stream.write(text)
    except OSError as error:
      self._lost(error)
    return len(text)

  def flush(self) -> None:
    """Flushes where it can."""
    try:
      self._stream.flush()
    except OSError as error:
      self._lost(error)

  def _lost(self, error: OSError) -> None:
    """Has the file descriptor lead to nowhere, for libraries that write to it themselves too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)
    with contextlib.suppress(OSError):
      self._stream.flush()
    note(f'{self._stream.name} has gone ({error.strerror}); what is said is in this log alone')


def outlive_terminal() -> None:
  """Lets the program go on where its terminal is closed, or goes away."""
  # A file that is opened later must not get the number of a closed stream, or be written to as one.
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(number, True)
  os.close(number)
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    setattr(sys, name, Terminal(getattr(sys, name) or os.fdopen(number, 'w')))
  if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
