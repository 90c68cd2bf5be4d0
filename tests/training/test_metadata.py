import http.server
import threading
import types
import urllib.parse

import pytest

from ddpm_jax.training import metadata
from experiments import train

# As Google's pages have them, in the order of the answers.
NEWS = {
  'instance/maintenance-event': (
    'NONE',
    'MIGRATE_ON_HOST_MAINTENANCE',
    'TERMINATE_ON_HOST_MAINTENANCE',
  ),
  'instance/preempted': ('FALSE', 'FALSE', 'TRUE'),
}
TAGS = ('0', 'a', 'b', 'c')


class Server(http.server.BaseHTTPRequestHandler):
  """Google's, as its documentation has it: the first answer is of now, the others of changes."""

  def do_GET(self):
    address = urllib.parse.urlparse(self.path)
    key = address.path.removeprefix('/computeMetadata/v1/')
    query = dict(urllib.parse.parse_qsl(address.query))
    self.server.asked.append((self.headers['Metadata-Flavor'], key, query))
    if len(self.server.asked) == 1:
      self.send_error(503)
      return
    number = TAGS.index(query['last_etag'])
    self.send_response(200)
    self.send_header('ETag', TAGS[number + 1])
    self.end_headers()
    self.wfile.write(NEWS[key][number].encode())

  def log_message(self, *arguments):
    """Says nothing."""


@pytest.mark.parametrize('key', NEWS)
def test_the_end_of_the_machine_ends_the_program_and_nothing_else_does(key, monkeypatch, capsys):
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
  server.asked = []
  threading.Thread(target=server.serve_forever, daemon=True).start()
  sent = []
  monkeypatch.setenv('GCE_METADATA_HOST', f'127.0.0.1:{server.server_port}')
  monkeypatch.setattr(metadata, 'RETRY', 0.01)
  monkeypatch.setattr(metadata.os, 'kill', lambda *signal: sent.append(signal))
  try:
    metadata.wait_for_end(key)
  finally:
    server.shutdown()
    server.server_close()
  assert sent == [(metadata.os.getpid(), metadata.signal.SIGTERM)]
  flavors, keys, queries = zip(*server.asked, strict=True)
  assert set(flavors) == {'Google'} and set(keys) == {key}
  assert [query['last_etag'] for query in queries] == ['0', '0', 'a', 'b']
  assert all(query['wait_for_change'] == 'true' for query in queries)
  first, last = capsys.readouterr().out.splitlines()
  assert 'cannot be read' in first and f'{key}={NEWS[key][-1]}' in last


@pytest.mark.parametrize('asked', [True, False])
def test_training_listens_to_it_where_it_is_asked_to(asked, monkeypatch):
  called = []
  for owner, name in ((train, 'train'), (train.cli, 'join')):
    monkeypatch.setattr(owner, name, lambda *args, _name=name, **options: called.append(_name))
  for name, value in {'CONFIG': None, 'WORKDIR': 'a', 'PLUGINS': (), 'WATCH': asked}.items():
    monkeypatch.setattr(train, name, types.SimpleNamespace(value=value))
  monkeypatch.setattr(
    train, 'backend', types.SimpleNamespace(prepare=lambda deterministic: called.append('prepare'))
  )
  monkeypatch.setattr(train.cli, 'overrides', dict)
  monkeypatch.setattr(train, 'from_config_dict', lambda *args: settings())
  monkeypatch.setattr(metadata, 'watch', lambda: called.append('watch'))
  train.main()
  assert called == ['prepare', 'join', *(['watch'] if asked else []), 'train']


def settings():
  """As much of a config as the command itself reads."""
  return types.SimpleNamespace(training=types.SimpleNamespace(deterministic=False))
