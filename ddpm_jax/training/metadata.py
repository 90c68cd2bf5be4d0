"""Google's machines: a maintenance or a preemption of which only their metadata server tells.

https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
"""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request

from ddpm_jax import logs

HOST = 'metadata.google.internal'  # unless the environment's GCE_METADATA_HOST names another
# What the server tells, and its value where the machine is to end; a migration is no end.
ENDS = {'instance/maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE', 'instance/preempted': 'TRUE'}
WAIT = 60  # seconds in which the server answers, whether or not the value has changed
RETRY = 10.0  # seconds until it is asked anew where it has not answered


def watch() -> None:
  """From now on sends this process SIGTERM where the server tells of its machine's end."""
  for key in ENDS:
    threading.Thread(target=wait_for_end, args=(key,), daemon=True).start()


def wait_for_end(key: str) -> None:
  """Returns once a key has the value that tells of an end, and SIGTERM is sent."""
  value, tag, failed = '', '0', False
  while value != ENDS[key]:
    try:
      value, tag = ask(key, tag)
    except OSError as error:
      if not failed:
        logs.say(f'--watch_metadata: {key} cannot be read ({error}); it is asked for again')
      failed = True
      time.sleep(RETRY)
  logs.say(f'the metadata server says {key}={value}: the run is saved and ends')
  os.kill(os.getpid(), signal.SIGTERM)


def ask(key: str, tag: str) -> tuple[str, str]:
  """The value of a key and its tag, once that is another than `tag`, or after WAIT seconds."""
  host = os.environ.get('GCE_METADATA_HOST', HOST)
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/{key}'
    f'?wait_for_change=true&timeout_sec={WAIT}&last_etag={tag}',
    headers={'Metadata-Flavor': 'Google'},
  )
  with urllib.request.urlopen(request, timeout=WAIT + RETRY) as answer:
    return answer.read().decode().strip(), answer.headers.get('ETag', '0')
