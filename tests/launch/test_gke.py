"""The JobSet for Google Kubernetes Engine, against the schemas of JobSet and Kubernetes.

The schemas are those of kubeflow-trainer-api, made from JobSet's and Kubernetes' own OpenAPI files.
"""

import math
import os
import pathlib
import re
import signal
import subprocess

import pytest
import yaml
from kubeflow_trainer_api import models

from configs import cifar10
from experiments import cli

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'experiments' / 'launch' / 'gke_jobset.yaml').read_text()
EVERY = re.sub(r'#\+ ', '', TEXT)  # with the lines for Spot machines, Kueue and several slices
RULE = models.JobsetV1alpha2FailurePolicyRule


def lost(given, kept, where=''):
  """What the API's own models do not keep of a document: fields that they do not know."""
  if isinstance(given, dict) and isinstance(kept, dict):
    return [
      fault
      for key, value in given.items()
      for fault in (lost(value, kept[key], f'{where}.{key}') if key in kept else [f'{where}.{key}'])
    ]
  if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
    pairs = enumerate(zip(given, kept, strict=True))
    return [fault for i, pair in pairs for fault in lost(*pair, f'{where}[{i}]')]
  return [] if given == kept else [where]


def faults(document):
  """What the schemas say of a JobSet."""
  try:
    return lost(document, models.JobsetV1alpha2JobSet.from_dict(document).to_dict())
  except ValueError as error:
    return [str(error)]


def parts(text=TEXT):
  """The set's failure policy, its Job's specification, the pod's, and the container."""
  spec = yaml.safe_load(text)['spec']
  (job,) = spec['replicatedJobs']
  pod = job['template']['spec']['template']['spec']
  (container,) = pod['containers']
  return spec['failurePolicy'], job['template']['spec'], pod, container


@pytest.mark.parametrize('text', [TEXT, EVERY], ids=['as it stands', 'every line'])
def test_the_schemas_know_every_field_of_the_job_set(text):
  assert faults(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
  'old, new, told',
  [
    ('podFailurePolicy:', 'podFailurePolicies:', '.podFailurePolicies'),
    ('onExitCodes:', 'onExitCode:', '.onExitCode'),
    ('mountPath: /runs', 'path: /runs', '.volumeMounts[0].path'),
    ('maxRestarts: 10', 'maxRestarts: many', 'maxRestarts'),
    ("'true'", 'true', 'annotations'),
  ],
)
def test_the_schemas_find_what_is_wrong(old, new, told):
  assert told in ' '.join(faults(yaml.safe_load(TEXT.replace(old, new))))


# What the models take as any string, from the kubebuilder marks in JobSet's api/jobset/v1alpha2 and
# Kubernetes' rules of names: https://github.com/kubernetes-sigs/jobset, seen on 18 August 2026.
STRATEGIES = {'Recreate', 'BlockingRecreate'}
ACTIONS = {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'}
LABEL = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')


@pytest.mark.parametrize('text', [TEXT, EVERY], ids=['as it stands', 'every line'])
def test_what_the_schemas_take_as_any_string_is_one_that_job_set_takes(text):
  document, (policy, job, pod, container) = yaml.safe_load(text), parts(text)
  assert (document['apiVersion'], document['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert policy['restartStrategy'] in STRATEGIES
  assert {rule['action'] for rule in policy['rules']} <= ACTIONS
  assert {rule['action'] for rule in job['podFailurePolicy']['rules']} == {'FailJob'}
  assert isinstance(container['resources']['limits']['google.com/tpu'], int)
  (replicated,) = document['spec']['replicatedJobs']
  names = [document['metadata']['name'], replicated['name'], container['name']]
  names += [rule['name'] for rule in policy['rules']]
  names += [volume['name'] for volume in pod['volumes']]
  assert all(LABEL.fullmatch(name) for name in names)


def test_the_lines_that_are_left_out_are_what_they_say():
  plain, every = yaml.safe_load(TEXT), yaml.safe_load(EVERY)
  assert (
    'kueue.x-k8s.io/queue-name'
    in every['metadata']['labels'].keys() - plain['metadata']['labels'].keys()
  )
  pod = parts(EVERY)[2]
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true' and pod['hostNetwork']
  assert 'hostNetwork' not in parts()[2]


def test_every_host_of_the_slice_has_a_pod_with_all_of_its_chips():
  _, job, pod, container = parts()
  assert job['completions'] == job['parallelism'] and job['completionMode'] == 'Indexed'
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  chips = container['resources']['limits']['google.com/tpu']
  assert math.prod(map(int, topology.split('x'))) == chips * job['completions']


def test_the_pods_failure_policy_is_one_that_kubernetes_takes():
  # https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
  _, job, pod, container = parts()
  assert pod['restartPolicy'] == 'Never' and job['backoffLimit'] == 0
  for rule in job['podFailurePolicy']['rules']:
    assert len(rule.keys() & {'onExitCodes', 'onPodConditions'}) == 1
    codes = rule.get('onExitCodes', {'values': [1], 'containerName': container['name']})
    assert codes['containerName'] == container['name'] and 0 not in codes['values']


def failed(rules, pods):
  """Reason and message of a Job of `pods`, [(exit code, condition)], as Kubernetes 1.31 makes them.

  The first pod that a rule matches decides; the messages are those that JobSet's KEP 262 quotes.
  """
  for code, condition in pods:
    for index, rule in enumerate(rules):
      end = f'matching FailJob rule at index {index}'
      if code in rule.get('onExitCodes', {}).get('values', ()):
        line = f'Container train for pod default/x failed with exit code {code} {end}'
        return 'PodFailurePolicy', line
      if condition in [wanted['type'] for wanted in rule.get('onPodConditions', ())]:
        return 'PodFailurePolicy', f'Pod default/x has condition {condition} {end}'
  return 'BackoffLimitExceeded', 'Job has reached the specified backoff limit'


def action(*jobs):
  """What JobSet does once these jobs have failed: its first rule that one of them matches."""
  policy, job, *_ = parts()
  ends = [failed(job['podFailurePolicy']['rules'], pods) for pods in jobs]
  for rule in policy['rules']:
    for reason, message in ends:
      patterns = rule.get('onJobFailureMessagePatterns', [''])
      if reason in rule['onJobFailureReasons'] and any(re.search(p, message) for p in patterns):
        return rule['action']
  return 'RestartJobSet'


FREE = 'RestartJobSetAndIgnoreMaxRestarts'


@pytest.mark.parametrize(
  'jobs, wanted',
  [
    ([[(2, None)] * 4], 'FailJobSet'),
    ([[(1, None), (2, None), (134, None)]], 'FailJobSet'),  # one host lacks its data
    ([[(1, None)], [(2, None)]], 'FailJobSet'),  # two slices
    ([[(143, None)] * 4], FREE),
    ([[(143, 'DisruptionTarget'), (143, None)]], FREE),
    ([[(1, None), (137, 'DisruptionTarget')]], FREE),  # no time to save
    ([[(1, None), (134, None)]], 'RestartJobSet'),
    ([[(12, None)]], 'RestartJobSet'),
    ([[(137, None)]], 'RestartJobSet'),  # memory
  ],
)
def test_only_a_crash_uses_up_a_restart_and_a_refusal_ends_all(jobs, wanted):
  assert action(*jobs) == wanted
  known = RULE.model_fields['action'].description
  assert wanted in known.partition('Valid values are ')[2].rstrip('.').split(', ')


def test_what_outlives_a_pod_lies_in_the_bucket():
  _, job, pod, container = parts()
  mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
  volumes = {volume['name']: volume for volume in pod['volumes']}
  assert mounts.keys() == volumes.keys()
  assert volumes['runs']['csi']['driver'] == 'gcsfuse.csi.storage.gke.io'
  assert job['template']['metadata']['annotations']['gke-gcsfuse/volumes'] == 'true'
  (cache,) = [item['value'] for item in container['env']]
  assert cache.startswith(mounts['runs'] + '/')
  (line,) = container['args']
  assert f'--workdir={mounts["runs"]}/' in line


def start(folder):
  """Starts the container's command with `folder` in place of / and a python that waits."""
  (folder / 'bin').mkdir()
  (folder / 'data').mkdir()
  stand_in = '#!/usr/bin/env bash\necho $$ "$@"\ntrap "exit 143" TERM\nwhile :; do sleep 0.05; done'
  (folder / 'bin' / 'python').write_text(stand_in)
  (folder / 'bin' / 'python').chmod(0o755)
  _, _, _, container = parts()
  (line,) = container['args']
  line = re.sub(r'/(runs|data)\b', rf'{folder}/\1', line.replace('/runs/data', '/runs/DATA'))
  line = line.replace('DATA', 'data')
  return subprocess.Popen(
    [*container['command'], line],
    env={**os.environ, 'PATH': f'{folder / "bin"}:{os.environ["PATH"]}'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_the_pods_command_takes_the_data_and_hands_sigterm_to_python(tmp_path):
  (tmp_path / 'runs' / 'data' / 'cifar10').mkdir(parents=True)
  (tmp_path / 'runs' / 'data' / 'cifar10' / 'a').write_text('b')
  process = start(tmp_path)
  pid, *words = process.stdout.readline().split()
  assert int(pid) == process.pid, 'the shell is gone'
  assert words[:3] == ['-u', '-m', 'experiments.train'] and words[-1] == '--distributed'
  assert (tmp_path / 'data' / 'cifar10' / 'a').read_text() == 'b'
  for word in words:
    if word.startswith('--config.'):
      field, _, value = word.removeprefix('--config.').partition('=')
      cli.read_value(cifar10.get_config(), field, value)
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 143


def test_a_pod_without_data_is_refused_and_not_begun_anew(tmp_path):
  process = start(tmp_path)
  _, told = process.communicate(timeout=10)
  assert process.returncode == 2 and 'no' in told and told.count('\n') == 1
  assert action([(process.returncode, None)]) == 'FailJobSet'
