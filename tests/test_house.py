"""The house: imports have no circle, and nobody between names an entry of a condition."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'ddpm_jax').rglob('*.py'))


def module_of(path):
  """'ddpm_jax.data.dataset' of a file."""
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


NAMES = {module_of(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text()) for name, path in NAMES.items()}


def defined_in(package, name):
  """The module that a package's face takes a name from; the package where it is its own."""
  if f'{package}.{name}' in NAMES:
    return f'{package}.{name}'
  for node in TREES[package].body:
    if isinstance(node, ast.ImportFrom) and name in [a.asname or a.name for a in node.names]:
      return defined_in(node.module, name) if node.module in NAMES else None
  return package


def imported(name):
  """The modules that one imports anywhere in it: in functions and under TYPE_CHECKING too."""
  for node in ast.walk(TREES[name]):
    if isinstance(node, ast.ImportFrom) and node.module in NAMES:
      yield from (defined_in(node.module, alias.name) for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names if alias.name in NAMES)


FACES = {name for name, path in NAMES.items() if path.name == '__init__.py'}


def graph():
  """Every module that is no package's face, and those that it imports."""
  return {
    name: {other for other in imported(name) if other and other not in FACES | {name}}
    for name in NAMES
    if name not in FACES
  }


def test_no_circle_of_imports():
  order = list(graphlib.TopologicalSorter(graph()).static_order())  # raises CycleError, naming it
  assert order.index('ddpm_jax.errors') < order.index('ddpm_jax.tasks.train')


BETWEEN = ('diffusion', 'samplers', 'losses', 'training', 'tasks', 'evaluation')
# From the ground up; a room may use those before it.
ROOMS = ['diffusion', 'theory', 'models', 'samplers', 'losses', 'data', 'training', 'tasks']
ROOMS += ['evaluation', 'ablation']
# Rooms of one floor, which do not know each other.
APART = {('models', 'diffusion'), ('data', 'diffusion'), ('data', 'models')}


def room(name):
  return name.split('.')[1]


@pytest.mark.parametrize('lower', ROOMS)
def test_a_room_does_not_know_those_above(lower):
  above = set(ROOMS[ROOMS.index(lower) + 1 :]) - ({'data'} if lower == 'training' else set())
  above |= {a if b == lower else b for a, b in APART if lower in (a, b)}
  wrong = [
    f'{name} imports {other}'
    for name, others in graph().items()
    for other in others
    if room(name) == lower and room(other) in above
  ]
  assert not wrong


def names_an_entry(node):
  """Whether a node is cond['name'], cond.get('name') or a dict that has the key 'label'."""
  if isinstance(node, ast.Subscript):
    return is_condition(node.value) and isinstance(node.slice, ast.Constant)
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
    return node.func.attr == 'get' and is_condition(node.func.value)
  return isinstance(node, ast.Dict) and any(
    isinstance(key, ast.Constant) and key.value == 'label' for key in node.keys
  )


def is_condition(node):
  """Whether an expression ends in cond or ['cond']."""
  return ast.unparse(node).endswith(('cond', "['cond']"))


@pytest.mark.parametrize('lower', BETWEEN)
def test_only_data_and_networks_name_an_entry_of_a_condition(lower):
  wrong = [
    f'{name}, line {node.lineno}: {ast.unparse(node)}'
    for name, tree in TREES.items()
    if name.startswith(f'ddpm_jax.{lower}.')
    for node in ast.walk(tree)
    if names_an_entry(node)
  ]
  assert not wrong


def test_what_names_an_entry_is_found():
  for code in ("cond['label']", "batch['cond']['text']", "{'label': x}", "cond.get('x0')"):
    assert any(map(names_an_entry, ast.walk(ast.parse(code)))), code
  for code in ("batch['cond']", "params['network']", 'cond[rows]'):
    assert not any(map(names_an_entry, ast.walk(ast.parse(code)))), code


@pytest.mark.parametrize('face', sorted(FACES))
def test_no_name_of_a_package_hides_one_of_its_modules(face):
  taken = [
    alias.asname or alias.name
    for node in TREES[face].body
    if isinstance(node, ast.ImportFrom) and node.module != face
    for alias in node.names
  ]
  assert not [name for name in taken if f'{face}.{name}' in NAMES]
