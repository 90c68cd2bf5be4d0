"""Whose a checkpoint is: another's is refused, and what does not say is taken as it was."""

import json
import shutil

import pytest
from quick import apart, quick, start, trained

from ddpm_jax.errors import InputError
from ddpm_jax.tasks.identity import experiment_of
from ddpm_jax.tasks.run import load_run

__all__ = ['quick']


def test_anothers_checkpoints_are_refused_before_anything_is_written(quick, tmp_path):
  trained(tmp_path / 'old', tmp_path / 'kept')
  before = {p: p.read_bytes() for p in (tmp_path / 'kept').rglob('*') if p.is_file()}
  other = apart(tmp_path / 'kept', seed=1, **{'optimizer.learning_rate': 0.5})
  with pytest.raises(InputError) as caught:
    start(tmp_path / 'new', other)
  assert str(caught.value) == (
    f'{tmp_path}/kept: the checkpoint of step 4 is of another experiment, which differs in '
    'config.seed, config.optimizer.learning_rate; give another config.checkpoint.folder'
  )
  assert not (tmp_path / 'new').exists()
  assert before == {p: p.read_bytes() for p in (tmp_path / 'kept').rglob('*') if p.is_file()}
  shutil.move(tmp_path / 'kept', tmp_path / 'moved')  # where it is does not make it another
  assert start(tmp_path / 'new', apart(tmp_path / 'moved'))[0] == 5


def test_checkpoints_of_earlier_versions_go_on_and_a_line_says_so(quick, tmp_path, caplog):
  trained(tmp_path / 'old', tmp_path / 'kept', 3)
  path = tmp_path / 'kept' / '2' / 'record' / 'metadata'
  record = json.loads(path.read_text())
  assert set(record.pop('experiment')) == {'config', 'plugins'}
  path.write_text(json.dumps(record))
  for manifest in (tmp_path / 'kept' / '2').glob('*/checksums.json'):
    manifest.unlink()
  assert start(tmp_path / 'new', apart(tmp_path / 'kept'))[0] == 3
  told = [
    each.getMessage()
    for each in caplog.records
    if 'which experiment it belongs' in each.getMessage()
  ]
  assert len(told) == 1 and told[0].startswith(
    f'{tmp_path}/kept: the checkpoint of step 2 does not'
  )


@pytest.mark.parametrize(
  'said', [5, 'abc', [], {}, {'config': 3, 'plugins': {}}, {'config': {}, 'plugins': None}, None]
)
def test_what_is_no_identity_counts_as_none(said, tmp_path):
  folder = tmp_path / '2' / 'record'
  folder.mkdir(parents=True)
  for record in (said, {'experiment': said}):
    (folder / 'metadata').write_text(json.dumps(record))
    assert experiment_of(tmp_path, 2) is None


def test_a_run_is_not_loaded_from_anothers_checkpoints(quick, tmp_path):
  for name, seed in (('a', 0), ('b', 1)):
    assert start(tmp_path / name, apart(tmp_path / f'of-{name}', seed=seed), 3)
  shutil.rmtree(tmp_path / 'of-a')
  shutil.move(tmp_path / 'of-b', tmp_path / 'of-a')
  with pytest.raises(InputError, match=r'of-a: the checkpoint of step 2 is of .* in config.seed; '):
    load_run(tmp_path / 'a', plugins=('tiny',))
