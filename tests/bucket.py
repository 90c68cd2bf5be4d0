"""A bucket on 127.0.0.1: as much of Cloud Storage's JSON API as gcsfs, tensorstore and Orbax use.

Objects are in memory, each whole or not at all, as there. A test may make requests fail, late or
early; see `Bucket.refuse`.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse

NAME = 'bucket'
UPLOADS = '/upload/storage/v1/b/{}/o'


class Bucket:
  """A server of one bucket; a context manager that sets the environment which leads to it.

  Attributes:
    objects: name -> (bytes, generation).
    asked: 'METHOD path' of every request.
    refuse: (method, object's name) -> the status of an error, or None to serve the request.
  """

  def __init__(self):
    self.objects, self.asked, self.uploads = {}, [], {}
    self.refuse = lambda method, name: None
    self.generations = itertools.count(1)
    self.lock = threading.Lock()
    self._server = Server(('127.0.0.1', 0), Handler)
    self._server.bucket, self._server.daemon_threads = self, True
    self.url = f'http://127.0.0.1:{self._server.server_port}'
    self.environment = {
      'STORAGE_EMULATOR_HOST': self.url,  # gcsfs's and google-cloud-storage's
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',  # tensorstore's
      'GOOGLE_CLOUD_PROJECT': 'none',
      'NO_GCE_CHECK': 'true',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # would ask by gRPC for the kind of bucket
    }

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *exception):
    self._server.shutdown()
    self._server.server_close()

  def put(self, name, content):
    with self.lock:
      self.objects[name] = (bytes(content), next(self.generations))
    return self.described(name)

  def described(self, name):
    """An object's resource."""
    content, generation = self.objects[name]
    return {
      'kind': 'storage#object',
      'name': name,
      'bucket': NAME,
      'size': str(len(content)),
      'generation': str(generation),
      'metageneration': '1',
      'updated': '2026-01-01T00:00:00.000Z',
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'etag': f'e{generation}',
      'md5Hash': base64.b64encode(hashlib.md5(content).digest()).decode(),
    }

  def listed(self, query):
    """What objects.list answers."""
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    begin, end = query.get('startOffset', ''), query.get('endOffset')
    names, prefixes = [], []
    for name in sorted(self.objects):
      if not name.startswith(prefix) or name < begin or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        folder = prefix + rest.split(delimiter)[0] + delimiter
        prefixes += [] if folder in prefixes else [folder]
      else:
        names.append(name)
    first, most = int(query.get('pageToken', 0)), int(query.get('maxResults', 1000))
    page = {'items': [self.described(name) for name in names[first : first + most]]}
    if len(names) > first + most:
      page['nextPageToken'] = str(first + most)
    return {'kind': 'storage#objects', 'prefixes': prefixes, **page}


class Server(http.server.ThreadingHTTPServer):
  """Says nothing of clients that hang up, as those do that are killed."""

  def handle_error(self, request, client_address):
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request."""

  protocol_version = 'HTTP/1.1'

  def log_message(self, *arguments):
    pass

  def setup(self):
    super().setup()
    self.bucket = self.server.bucket

  def do_GET(self):
    self.answer(self.get)

  def do_POST(self):
    self.answer(self.upload)

  do_PUT = do_POST  # noqa: N815

  def do_DELETE(self):
    self.answer(self.delete)

  def answer(self, serve):
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query))
    self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    if 'chunked' in self.headers.get('Transfer-Encoding', ''):
      self.body = b''.join(iter(self.chunk, b''))
    found = re.fullmatch(r'(?:/download|/upload)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?', url.path)
    self.bucket.asked.append(f'{self.command} {urllib.parse.unquote(self.path)}')
    if not found or found[1] != NAME:
      return self.reply(404, {'error': {'code': 404, 'message': f'no {url.path}'}})
    self.name = urllib.parse.unquote(found[2] or self.query.get('name', ''))
    self.whole = not found[2] and url.path.endswith('/o')
    if status := self.bucket.refuse(self.command, self.name):
      return self.reply(status, {'error': {'code': status, 'message': 'refused'}})
    serve()

  def chunk(self):
    size = int(self.rfile.readline().split(b';')[0], 16)
    data = self.rfile.read(size)
    self.rfile.readline()
    return data

  def reply(self, status, content=b'', **headers):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
      headers['Content_Type'] = 'application/json'
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def missing(self):
    self.reply(404, {'error': {'code': 404, 'message': f'No such object: {NAME}/{self.name}'}})

  def stale(self):
    """Whether a precondition on the object's generation fails."""
    now = self.bucket.objects.get(self.name, (b'', 0))[1]
    match, other = (self.query.get(f'ifGeneration{kind}Match') for kind in ('', 'Not'))
    return (match is not None and int(match) != now) or (other is not None and int(other) == now)

  def get(self):
    if self.whole:
      return self.reply(200, self.bucket.listed(self.query))
    if not self.name:
      return self.reply(200, {'kind': 'storage#bucket', 'name': NAME, 'id': NAME})
    if self.name not in self.bucket.objects:
      return self.missing()
    if self.stale():
      return self.reply(304 if 'ifGenerationNotMatch' in self.query else 412)
    content, generation = self.bucket.objects[self.name]
    if self.query.get('alt') != 'media':
      return self.reply(200, self.bucket.described(self.name))
    named = {'x_goog_generation': generation, 'ETag': f'e{generation}'}
    asked = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not asked:
      return self.reply(200, content, **named)
    first, last = asked.groups()
    begin = int(first) if first else max(0, len(content) - int(last))
    end = min(int(last) + 1 if first and last else len(content), len(content))
    if begin >= len(content):
      return self.reply(416)
    part = content[begin:end]
    return self.reply(206, part, Content_Range=f'bytes {begin}-{end - 1}/{len(content)}', **named)

  def upload(self):
    session = self.query.get('upload_id')
    if session:
      return self.go_on(session)
    kind = self.query.get('uploadType')
    if kind == 'multipart':
      boundary = re.search('boundary="?([^"]+)"?', self.headers['Content-Type'])[1].encode()
      _, told, content, _ = self.body.split(b'--' + boundary)
      told, content = (re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in (told, content))
      self.name, self.body = json.loads(told)['name'], re.sub(rb'\r?\n$', b'', content)
    elif kind == 'resumable':
      self.name = self.name or json.loads(self.body)['name']
      session = str(next(self.bucket.generations))
      self.bucket.uploads[session] = [self.name, b'']
      where = f'{self.bucket.url}{UPLOADS.format(NAME)}?uploadType=resumable&upload_id={session}'
      return self.reply(200, Location=where)
    if self.stale():
      return self.reply(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
    return self.reply(200, self.bucket.put(self.name, self.body))

  def go_on(self, session):
    upload = self.bucket.uploads[session]
    upload[1] += self.body
    if self.headers['Content-Range'].endswith('/*'):
      return self.reply(308, Range=f'bytes=0-{len(upload[1]) - 1}')
    return self.reply(200, self.bucket.put(*self.bucket.uploads.pop(session)))

  def delete(self):
    if self.name not in self.bucket.objects:
      return self.missing()
    if self.stale():
      return self.reply(412)
    with self.bucket.lock:
      self.bucket.objects.pop(self.name, None)
    return self.reply(204)


if __name__ == '__main__':
  with Bucket() as bucket:
    print(bucket.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      sys.stdin.read()
