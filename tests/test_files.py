"""A file is there whole or not at all."""

import pytest

from ddpm_jax.files import whole


def test_a_file_appears_when_it_is_whole(tmp_path):
  target = tmp_path / 'new' / 'a.json'
  with whole(target) as part:
    assert part.suffix == '.json'
    part.write_text('all of it')
    assert not target.exists()
  assert target.read_text() == 'all of it'
  assert [path.name for path in target.parent.iterdir()] == ['a.json']


def test_a_failed_write_leaves_what_was_there(tmp_path):
  target = tmp_path / 'a.json'
  target.write_text('before')

  def fail():
    with whole(target) as part:
      part.write_text('half')
      raise OSError('disk full')

  with pytest.raises(OSError, match='full'):
    fail()
  assert target.read_text() == 'before'
  assert [path.name for path in tmp_path.iterdir()] == ['a.json']
