"""What the code of a plug-in is, in a few digits, so that a change of it is noticed."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import itertools
import pathlib
import platform
import site
import sys
import sysconfig
from collections.abc import Collection, Iterator
from importlib.machinery import ModuleSpec
from typing import NamedTuple

import xxhash

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ELSEWHERE = [
  pathlib.Path(folder).resolve()
  for folder in (
    pathlib.Path(__file__).parents[1],
    *site.getsitepackages(),
    site.getusersitepackages(),
    *map(sysconfig.get_path, ('stdlib', 'platstdlib', 'purelib', 'platlib')),
  )
]


class Code(NamedTuple):
  """A local module's.

  Attributes:
    spec: where it was read.
    digest: a hash of it.
    imports: the names that it imports, of modules or from them.
  """

  spec: ModuleSpec
  digest: str
  imports: frozenset[str]


# As it was when it was first read: a process goes on with the code that it imported, whatever
# becomes of the file, until the module is reloaded, which gives it another spec.
_seen: dict[str, Code] = {}


def sources(modules: Collection[str]) -> dict[str, str | None]:
  """{module: hash} of some modules and of all local ones that they import, be it in a function.

  Local is what is neither installed nor Python's nor this package's; of one of `modules` that is
  not, there is the version in place of the hash, and None where it is not in a file. Code counts
  as Python reads it, without comments, docstrings and layout. An import by a name that is computed
  is not seen.
  """
  found: dict[str, str | None] = dict.fromkeys(modules)
  waiting, met = list(prefixes(modules)), set()
  while waiting:
    name = waiting.pop()
    if name in met:
      continue
    met.add(name)
    spec = locate(name)
    if spec is not None and is_local(spec):
      code = read(name, spec)
      found[name] = code.digest
      waiting += prefixes(code.imports)
    elif spec is not None and name in found:
      found[name] = version(name)
  return dict(sorted(found.items()))


def prefixes(names: Collection[str]) -> Iterator[str]:
  """'a.b.c' as a, a.b and a.b.c: what is imported together."""
  for name in names:
    yield from itertools.accumulate(name.split('.'), '{}.{}'.format)


def locate(name: str) -> ModuleSpec | None:
  """Where a module comes from, or None; nothing is imported for the answer."""
  if name in sys.modules:
    return getattr(sys.modules[name], '__spec__', None)
  parent, path = name.rpartition('.')[0], None
  if parent:
    path = getattr(locate(parent), 'submodule_search_locations', None)
    if path is None:
      return None
  found = (finder.find_spec(name, path) for finder in sys.meta_path)
  return next(filter(None, found), None)


def is_local(spec: ModuleSpec) -> bool:
  """Whether a module is a file of the user's own."""
  path = pathlib.Path(spec.origin or '').resolve()
  return path.is_file() and not any(path.is_relative_to(folder) for folder in ELSEWHERE)


def read(name: str, spec: ModuleSpec) -> Code:
  """The code of a local module."""
  if name not in _seen or _seen[name].spec is not spec:
    _seen[name] = Code(spec, *digest(spec))
  return _seen[name]


def digest(spec: ModuleSpec) -> tuple[str, frozenset[str]]:
  """The hash of a module's code, and what it imports; of what is no Python that of its bytes."""
  content = pathlib.Path(str(spec.origin)).read_bytes()
  try:
    tree = ast.parse(content)
  except (SyntaxError, ValueError):
    return xxhash.xxh3_128_hexdigest(content), frozenset()
  imports = frozenset(imported(tree, str(spec.parent)))
  return xxhash.xxh3_128_hexdigest(ast.unparse(bare(tree)).encode()), imports


def bare(tree: ast.Module) -> ast.Module:
  """The tree without docstrings; comments and layout it has none."""
  for node in ast.walk(tree):
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
      node.body = node.body[1:] or [ast.Pass()]
  return tree


def imported(tree: ast.Module, package: str) -> Iterator[str]:
  """Every name that some import statement names; `package` is what relative ones begin at."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      with contextlib.suppress(ImportError):  # beyond the topmost package; Python refuses it too
        base = importlib.util.resolve_name('.' * node.level + (node.module or ''), package)
        yield from (f'{base}.{alias.name}' for alias in node.names)


def version(module: str) -> str | None:
  """Of Python, or of the distribution that a module is installed with; None where it is of none."""
  top = module.partition('.')[0]
  if top in sys.stdlib_module_names:
    return f'python {platform.python_version()}'
  (name, *_) = importlib.metadata.packages_distributions().get(top, [top])
  try:
    return f'{name} {importlib.metadata.version(name)}'
  except importlib.metadata.PackageNotFoundError:
    return None
