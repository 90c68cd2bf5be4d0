"""JAX's own detection of TPU hosts, with what GKE and Cloud TPU give each of them."""

import http.server
import threading
import types

import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster, cluster


@pytest.fixture(autouse=True)
def tpu_host(monkeypatch):
  """A machine with chips and libtpu, where nothing else names a cluster; nothing is waited for."""
  for module in (cluster, cloud_tpu_cluster):
    monkeypatch.setattr(module, 'running_in_cloud_tpu_vm', True)
  for name in ('OMPI_MCA_orte_hnp_uri', 'SLURM_JOB_ID', 'TPU_PROCESS_ADDRESSES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)  # set by JAX where there are no chips
  monkeypatch.setattr('time.sleep', lambda seconds: None)
  monkeypatch.setattr(
    cloud_tpu_cluster, 'socket', types.SimpleNamespace(gethostbyname=str, gaierror=OSError)
  )


@pytest.fixture
def metadata(monkeypatch):
  """The metadata server's attributes, of a server on 127.0.0.1; what is not in it is not found."""
  attributes = {}

  class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      text = attributes.get(self.path.removeprefix('/computeMetadata/v1/instance/attributes/'))
      asked = self.headers['Metadata-Flavor'] == 'Google'
      self.send_response(200 if asked and text is not None else 404)
      self.end_headers()
      self.wfile.write((text or '').encode())

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
  threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}).start()
  monkeypatch.setenv('GCE_METADATA_IP', f'127.0.0.1:{server.server_port}')
  yield attributes
  server.shutdown()
  server.server_close()


def found():
  """Coordinator, number of processes, this one's number, its devices."""
  return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 10)


# What GKE sets in a pod with chips, so that no metadata server is asked for the hosts.
GKE = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'TPU_SKIP_MDS_QUERY': 'true'}
HOSTS = [f'ddpm-jax-train-0-{host}.ddpm-jax' for host in range(4)]


@pytest.mark.parametrize('host', [0, 3])
def test_a_pod_of_a_slice_on_gke_finds_the_others(monkeypatch, metadata, host):
  given = {'TPU_WORKER_ID': str(host), 'TPU_WORKER_HOSTNAMES': ','.join(HOSTS)}
  for name, value in (GKE | given).items():
    monkeypatch.setenv(name, value)
  assert found() == (f'{HOSTS[0]}:8482', 4, host, None)


@pytest.mark.parametrize('part, host, number', [(0, 0, 0), (0, 3, 3), (1, 0, 4), (1, 3, 7)])
def test_the_pods_of_two_slices_on_gke_are_numbered_slice_after_slice(
  monkeypatch, part, host, number
):
  given = {
    'TPU_WORKER_ID': str(host),
    'TPU_WORKER_HOSTNAMES': ','.join(name.replace('train-0', f'train-{part}') for name in HOSTS),
    'MEGASCALE_NUM_SLICES': '2',
    'MEGASCALE_SLICE_ID': str(part),
    'MEGASCALE_COORDINATOR_ADDRESS': f'{HOSTS[0]}:8080',
  }
  for name, value in (GKE | given).items():
    monkeypatch.setenv(name, value)
  assert found() == (f'{HOSTS[0]}:8482', 8, number, None)


@pytest.mark.parametrize(
  'hosts', ['10.1.0.2,10.1.0.3', 'a:0:10.1.0.2,b:1:10.1.0.3'], ids=['addresses', 'triples']
)
def test_a_cloud_tpu_host_asks_the_metadata_server(metadata, hosts):
  metadata |= {'agent-worker-number': '1', 'worker-network-endpoints': hosts, 'tpu-env': ''}
  assert found() == ('10.1.0.2:8482', 2, 1, None)


def test_a_cloud_tpu_host_of_two_slices_finds_its_slice(metadata):
  metadata |= {'agent-worker-number': '1', 'worker-network-endpoints': '10.2.0.2,10.2.0.3'}
  metadata['tpu-env'] = (
    "ACCELERATOR_TYPE: 'v4-16'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    "MEGASCALE_COORDINATOR_ADDRESS: '10.1.0.2'\n"
  )
  assert found() == ('10.1.0.2:8482', 4, 3, None)
