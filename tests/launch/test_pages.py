"""The commands that the page of recipes and the recipes themselves tell people to type."""

import pathlib
import re

import published
import pytest
import yaml
from kubeflow_trainer_api import models

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'experiments' / 'launch'
PAGE = (ROOT / 'docs' / 'clusters.md').read_text()
TEXTS = {'clusters.md': PAGE, 'gke_jobset.yaml': (LAUNCH / 'gke_jobset.yaml').read_text()}


@pytest.mark.parametrize('name', TEXTS)
def test_gcloud_and_kubectl_know_every_command_that_is_named(name):
  found = published.commands(TEXTS[name])
  assert len(found) >= 2
  assert [line for words in found if (line := published.refusal(words))] == []


@pytest.mark.parametrize(
  'line, told',
  [
    ('kubectl aply -f x', 'no command'),
    ('kubectl get jobset', 'takes 2'),
    ('kubectl get jobset x --wach', 'no flag --wach'),
    ('gcloud storage buckets create gs://x --hierarchical-namespace', 'no flag'),
    ('gcloud compute tpus tpu-vm delete x', 'needs --zone'),
    ('gcloud compute tpus queued-resources delete x y --zone=z --quiet', 'takes 1'),
  ],
)
def test_what_they_do_not_know_is_refused(line, told):
  assert told in published.refusal(line.split())


def test_the_page_tells_of_every_command_of_the_tpu_recipe():
  recipe = (LAUNCH / 'tpu_pod.sh').read_text()
  (first, second) = re.findall(r'^  ([a-z| -]+)\) .*\$command', recipe, re.MULTILINE)[:2]
  words = {*re.split(r'[ |]+', f'{first} | {second}'), 'wait'} - {'create-now'}
  assert words == set(re.findall(r'tpu_pod\.sh ([a-z]+)', PAGE))


def test_every_recipe_has_its_row_and_every_link_its_section():
  recipes = {path.name for path in LAUNCH.iterdir() if path.is_file()}
  table = PAGE[PAGE.index('| recipe |') : PAGE.index('All are in')]
  assert recipes == set(re.findall(r'^\| \W*([\w.]+)', table, re.MULTILINE)) - {'recipe', '---'}
  titles = re.findall(r'^#+ (.+)$', PAGE, re.MULTILINE)
  anchors = {re.sub(r'[^a-z -]', '', title.lower()).replace(' ', '-') for title in titles}
  assert set(re.findall(r'\]\(#([\w-]+)\)', PAGE)) <= anchors


def test_the_claim_of_the_page_is_one_that_kubernetes_knows():
  (text,) = re.findall(r'```yaml\n(.*?)```', PAGE, re.DOTALL)
  claim = yaml.safe_load(text)
  assert models.IoK8sApiCoreV1PersistentVolumeClaim.from_dict(claim).to_dict() == claim
