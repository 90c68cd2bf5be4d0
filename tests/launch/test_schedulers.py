"""JAX's own detection of Slurm and Open MPI, with the variables that each sets for a task."""

import os

import jax
import pytest
from jax._src.clusters import ClusterEnv, cluster


@pytest.fixture(autouse=True)
def task(monkeypatch):
  """Sets what a launcher sets, where nothing else names a cluster."""
  monkeypatch.setattr(cluster, 'running_in_cloud_tpu_vm', False)
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'PMIX_', 'PRTE_', 'JAX_COORDINATOR', 'KUBERNETES_')):
      monkeypatch.delenv(name)

  def begin(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return begin


def found():
  """Coordinator, number of processes, this one's number, its devices."""
  return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 10)


NOTHING = (None, None, None, None)

# Of task 5 of eight on two nodes, as `srun` of Slurm 22.05.8 sets them; 26.11's manual has all.
SRUN = {
  'SLURM_JOB_ID': '4099',
  'SLURM_JOB_NODELIST': 'gpu[007-008]',
  'SLURM_NTASKS': '8',
  'SLURM_NPROCS': '8',
  'SLURM_STEP_ID': '0',
  'SLURM_STEP_NODELIST': 'gpu[007-008]',
  'SLURM_STEP_NUM_NODES': '2',
  'SLURM_STEP_NUM_TASKS': '8',
  'SLURM_PROCID': '5',
  'SLURM_LOCALID': '1',
  'SLURM_NODEID': '1',
}


@pytest.mark.parametrize(
  'nodes, first',
  [
    ('gpu[007-008]', 'gpu007'),
    ('gpu[3,7-8]', 'gpu3'),
    ('gpu3,login1', 'gpu3'),
    ('localhost', 'localhost'),
    ('rack2-gpu[11-12],rack3-gpu1', 'rack2-gpu11'),
  ],
)
def test_a_task_of_srun_meets_the_others_on_the_first_node(task, nodes, first):
  task(SRUN | {'SLURM_STEP_NODELIST': nodes})
  # 61440 is the first of JAX's 4,096 ports, of which the job's number takes one.
  assert found() == (f'{first}:{61440 + 4099 % 4096}', 8, 5, [1])


def test_a_batch_script_alone_is_no_task(task):
  task({name: SRUN[name] for name in SRUN if not name.startswith('SLURM_STEP')})
  assert found() == NOTHING


def test_a_name_that_goes_on_after_its_numbers_is_misread(task):
  """docs/clusters.md tells of it: JAX then needs JAX_COORDINATOR_ADDRESS."""
  task(SRUN | {'SLURM_STEP_NODELIST': 'gpu[1-2]-ib'})
  assert found()[0].startswith('gpu1:')


# Of rank 5 of eight, as `mpirun` sets them.
RANKS = {
  'OMPI_COMM_WORLD_SIZE': '8',
  'OMPI_COMM_WORLD_RANK': '5',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
  'OMPI_COMM_WORLD_NODE_RANK': '1',
}
MPIRUN_4 = RANKS | {'OMPI_MCA_orte_hnp_uri': '2075656192.0;tcp://192.0.2.2,10.0.0.2:43425'}
MPIRUN_5 = RANKS | {
  'OMPI_VERSION': '5.0.11',
  'PMIX_NAMESPACE': 'prterun-gpu007-6094@1',
  'PMIX_RANK': '5',
  'PMIX_SERVER_URI41': 'prterun-gpu007-6094@0.0;tcp4://192.0.2.2:38099',
  'PRTE_LAUNCHED': '1',
}


@pytest.mark.parametrize(
  'address, host',
  [
    ('tcp://192.0.2.2,10.0.0.2:43425', '192.0.2.2'),
    ('tcp6://[fd00::2,fd00::3]:51349', 'fd00::2'),
  ],
)
def test_a_rank_of_open_mpi_4_meets_the_others_where_mpirun_runs(task, address, host):
  task(MPIRUN_4 | {'OMPI_MCA_orte_hnp_uri': f'2075656192.0;{address}'})
  assert found() == (f'{host}:{61440 + 2075656192 // 4096 % 4096}', 8, 5, [1])


def test_open_mpi_comes_before_the_slurm_job_that_it_runs_in(task):
  task(SRUN | MPIRUN_4 | {'OMPI_COMM_WORLD_RANK': '6'})
  assert found()[:3] == ('192.0.2.2:' + found()[0].split(':')[1], 8, 6)


def without_mpi4py():
  """What JAX finds of Open MPI 5; later versions know it, and ask for mpi4py."""
  if jax.__version_info__ < (0, 11):
    return found()
  with pytest.raises(RuntimeError, match='mpi4py'):
    found()
  return NOTHING


def test_open_mpi_5_is_not_served(task):
  """Why the recipe for Open MPI gives the three flags."""
  task(MPIRUN_5)
  assert without_mpi4py() == NOTHING


def test_in_a_slurm_job_the_daemon_of_open_mpi_5_is_taken_for_a_task_or_refused(task):
  """Its mpirun starts a daemon on each further node by srun, whose ranks inherit its number."""
  task(MPIRUN_5 | SRUN | {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'})
  assert without_mpi4py()[1:3] in [(1, 0), NOTHING[1:3]]
