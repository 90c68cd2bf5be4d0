"""docs/mathematics.md as it is shipped: what it names exists, and its LaTeX renders on GitHub."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'mathematics.md'

LINK = r'\[([\w.]+)\]\(\.\./([\w/]+\.py)\)'
PROOF = re.compile(rf'→ ({LINK}(?:, {LINK})*) · checked by ({LINK}(?:, {LINK})*)')
BLOCK = re.compile(r'^\$\$\n(.*?)\n\$\$$', re.MULTILINE | re.DOTALL)
PAIRS = {'{': '}', '(': ')', '[': ']', r'\lbrace': r'\rbrace', r'\lfloor': r'\rfloor'}

# What GitHub refuses, or eats as Markdown before MathJax sees it.
REFUSED = re.compile(
  r'\\(?:operatorname|newcommand|def|require)\b|\\begin\{(?:align|equation)[*}]|\\[,;:!{}|_]'
)


def without_code(page: str) -> str:
  """The page with code replaced by nothing."""
  return re.sub(r'`[^`\n]+`', '', re.sub(r'^```.*?^```$', '', page, flags=re.MULTILINE | re.DOTALL))


def paragraphs(page: str) -> list[list[str]]:
  """The prose without blocks and code, each paragraph split at its dollars: text, formula, …."""
  return [part.split('$') for part in re.split(r'\n\s*\n', BLOCK.sub('', without_code(page)))]


def unproved(page: str) -> list[str]:
  """The boxed formulas that no well-formed line follows."""
  boxed = [match for match in BLOCK.finditer(page) if r'\boxed' in match[1]]
  return [m[1] for m in boxed if not PROOF.fullmatch(page[m.end() :].strip().split('\n')[0])]


def missing(page: str) -> list[str]:
  """The links of proofs to what does not exist, and those to a function named as a test."""
  lines = [line for line in page.split('\n') if line.startswith('→')]
  wrong = [line for line in lines if not PROOF.fullmatch(line)]
  for line in lines:
    functions, _, tests = line.partition(' · checked by ')
    wrong += [name for name, path in re.findall(LINK, functions) if not defines(path, name)]
    for name, path in re.findall(LINK, tests):
      if not (path.startswith('tests/') and name.startswith('test_') and defines(path, name)):
        wrong.append(name)
  return wrong


def defines(path: str, name: str) -> bool:
  """Whether a file has the function or class: `module.function`, `module.Class.method`, `test`."""
  if not (ROOT / path).is_file():
    return False
  if not path.startswith('tests/'):
    module = path.removesuffix('.py').replace('/', '.')
    if not name.startswith(f'{module}.'):
      return False
    name = name.removeprefix(f'{module}.')
  body = ast.parse((ROOT / path).read_text()).body
  for part in name.split('.'):
    found = [
      node
      for node in body
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
    ]
    if not found:
      return False
    body = found[0].body
  return True


def unreached(page: str) -> list[str]:
  """The named functions that no test beside them comes to."""
  wrong = []
  for functions, _, tests in (line.partition(' · checked by ') for line in page.split('\n')):
    found = set[str]().union(*(reach(path, name) for name, path in re.findall(LINK, tests)))
    named = [name for name, _ in re.findall(LINK, functions)] if tests else []
    wrong += [name for name in named if name.split('.')[-1] not in found]
  return wrong


def held_back(page: str) -> list[str]:
  """The named tests that the quick suite does not run: those marked slow, or to be skipped."""
  links = re.findall(r'\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)', page)
  return [name for name, path in links if marks(ROOT / path, name) & {'slow', 'skip', 'skipif'}]


def marks(path: pathlib.Path, name: str) -> set[str]:
  """What is mentioned in the decorators of a test, and in its file's `pytestmark`."""
  body = ast.parse(path.read_text()).body
  tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
  decorators = [decorator for node in tests for decorator in node.decorator_list]
  return definitions(path).get('pytestmark', set()).union(*map(mentioned, decorators))


def reach(path: str, name: str) -> set[str]:
  """What a test mentions, by way of its file's other definitions too, and of the package's once."""
  inside, seen, to_see = definitions(ROOT / path), set[str](), {name}
  while to_see:
    seen |= to_see
    to_see = set[str]().union(*(inside.get(word, set()) for word in to_see)) - seen
  return seen.union(*(package().get(word, set()) for word in seen))


@functools.cache
def definitions(path: pathlib.Path) -> dict[str, set[str]]:
  """The names, attributes and strings in what a file defines, by what it is called."""
  found: dict[str, set[str]] = {}
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names = [node.name]
    else:
      stored = (part for part in ast.walk(node) if isinstance(part, ast.Name))
      names = [part.id for part in stored if isinstance(part.ctx, ast.Store)]
    for name in names:
      found.setdefault(name, set()).update(mentioned(node))
  return found


@functools.cache
def package() -> dict[str, set[str]]:
  """The same of all the package's files together."""
  found: dict[str, set[str]] = {}
  for path in (ROOT / 'ddpm_jax').rglob('*.py'):
    for name, words in definitions(path).items():
      found.setdefault(name, set()).update(words)
  return found


def mentioned(node: ast.AST) -> set[str]:
  """All names, attributes, arguments and strings in a piece of code."""
  fields = ((part, name) for part in ast.walk(node) for name in ('id', 'attr', 'arg', 'value'))
  return {word for part, name in fields if isinstance(word := getattr(part, name, None), str)}


def faults(formula: str) -> list[str]:
  """What is unbalanced in a formula, or not for GitHub."""
  wrong = [match[0] for match in REFUSED.finditer(formula)]
  wrong += [line for line in formula.split('\n') if re.match(r'[-+*>#] |=+$|$', line)]
  stack: list[str] = []
  for mark in re.findall(r'\\(?:lbrace|rbrace|lfloor|rfloor)|[{}()\[\]]', formula):
    if mark in PAIRS:
      stack.append(PAIRS[mark])
    elif not stack or stack.pop() != mark:
      return [*wrong, f'{mark} closes nothing']
  for opening, closing in ((r'\left', r'\right'), (r'\begin', r'\end')):
    count = [len(re.findall(rf'\{word}(?![a-z])', formula)) for word in (opening, closing)]
    if count[0] != count[1]:
      wrong.append(f'{opening} without {closing}')
  return wrong + [f'{mark} is left open' for mark in stack]


@pytest.fixture(scope='module')
def page():
  return PAGE.read_text()


def test_every_boxed_formula_names_its_function_and_its_proof(page):
  assert page.count(r'\boxed') > 50
  assert unproved(page) == []


def test_every_named_function_and_test_exists(page):
  assert missing(page) == []


def test_every_named_test_runs_and_comes_to_its_function(page):
  assert held_back(page) == []
  assert unreached(page) == []


def test_every_picture_exists_and_is_drawn_here(page):
  from experiments.figures import FIGURES

  pages = page + (PAGE.parent / 'losses.md').read_text()
  pictures = re.findall(r'!\[[^\]]+\]\(images/(\w+)\.png\)', pages)
  assert sorted(pictures) == sorted(FIGURES)
  for name in pictures:
    assert (PAGE.parent / 'images' / f'{name}.png').stat().st_size > 10_000


def test_latex_is_balanced_and_githubs(page):
  bare = without_code(page)
  assert bare.count('$$') == 2 * len(BLOCK.findall(bare))
  for parts in paragraphs(page):
    assert len(parts) % 2, f'a dollar is left open: {parts}'
    # A dollar beside a letter or a digit is none of mathematics for GitHub.
    assert not any(re.match(r'\w', text) for text in parts[2::2]), parts
    assert not any(re.search(r'\w\Z', text) for text in parts[:-1:2]), parts
    assert all(formula == formula.strip() != '' for formula in parts[1::2]), parts
  formulas = [*BLOCK.findall(bare), *(part for parts in paragraphs(page) for part in parts[1::2])]
  assert {formula: faults(formula) for formula in formulas if faults(formula)} == {}


def test_every_section_that_is_referred_to_exists(page):
  sections = set(re.findall(r'^#{2,3} (A?\.?\d[\d.]*)', page, re.MULTILINE))
  named = re.findall(
    r'(?:[Ss]ections?|chapters?) ((?:\d[\d.]*\d|\d)(?:(?:,| and| to) \d[\d.]*\d)*)', page
  )
  named += re.findall(r'\b(A\.\d+)\b', page)
  assert {number for group in named for number in re.findall(r'A?[\d.]*\d', group)} <= sections


def test_the_example_runs(page):
  (code,) = re.findall(r'^```python\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
  names: dict = {}
  exec(code, names)
  assert names['mean'].shape == names['x0'].shape
  assert 0 < names['variance'] < 1


GOOD = '→ [ddpm_jax.diffusion.process.q_sample](../ddpm_jax/diffusion/process.py) · checked by '
GOOD += '[test_the_example_runs](../tests/test_mathematics.py)'


def test_what_is_amiss_is_found():
  box = '$$\n\\boxed{ x }\n$$\n\n'
  assert unproved(box + GOOD) == [] == missing(GOOD)
  assert unproved(box + 'text\n\n' + GOOD) == ['\\boxed{ x }']
  assert missing(GOOD.replace('q_sample', 'q_simple')) == ['ddpm_jax.diffusion.process.q_simple']
  assert missing(GOOD.replace('process.py', 'gaussian.py'))
  assert missing(GOOD.replace('the_example', 'no_example')) == ['test_no_example_runs']
  assert missing(GOOD.replace('test_the_example_runs', 'faults')) == ['faults']
  assert missing(GOOD.replace(' · checked by ', ' ')) != []
  assert unreached(GOOD) == ['ddpm_jax.diffusion.process.q_sample']  # the page's code calls it
  of_draws = '[test_sample_has_the_moments_of_the_marginal](../tests/diffusion/test_process.py)'
  assert unreached(f'{GOOD}, {of_draws}') == held_back(f'{GOOD}, {of_draws}') == []
  slow = 'test_every_variant_trains_to_near_the_exact_denoiser'
  assert held_back(f'[{slow}](../tests/benchmarks/test_exactness.py)') == [slow]
  for formula in ('{x', '(x]', r'\left( x )', r'\begin{aligned} x', '+ x', r'a \, b', 'a\n\nb'):
    assert faults(formula) != []
  assert faults(r'\left( x_{t} \right) + [0, 1]') == []
