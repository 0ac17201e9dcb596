import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "convmixer_jax"


def imports_of(path):
  """Names of the package's modules that a file imports, anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convmixer_jax"):
      inner = node.module.split(".")[1:]
      found |= {inner[0]} if inner else {alias.name for alias in node.names}
  return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


GRAPH = {path.stem: imports_of(path) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def depth(name):
  """Longest chain of imports below a module; recursion without end if there is a cycle."""
  return max((1 + depth(below) for below in GRAPH.get(name, ())), default=0)


def test_imports_point_one_way_and_are_shallow():
  depths = {name: depth(name) for name in GRAPH}
  assert depths["main"] == max(depths.values())
  for leaf in ("augment", "errors", "metrics", "optim"):
    assert depths[leaf] == 0, leaf
  assert "train" not in set().union(*(GRAPH[name] for name in GRAPH if name != "main"))


def length(function):
  return function.end_lineno - function.lineno


def test_files_and_functions_stay_small():
  for path in PACKAGE.rglob("*.py"):
    text = path.read_text()
    assert len(text.splitlines()) <= 300, path
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        inner = [n for n in node.body if isinstance(n, ast.FunctionDef)]  # counted by themselves
        assert length(node) - sum(map(length, inner)) < 80, (path, node.name)


def test_nothing_runs_at_import():
  """At the top of a module there are only definitions, imports, docstrings and constants."""
  allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
  for path in PACKAGE.rglob("*.py"):
    for node in ast.parse(path.read_text()).body:
      is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
      is_main = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
      is_gradient = ".defvjp(" in ast.unparse(node)  # tells JAX the gradient of the function above
      assert isinstance(node, allowed) or is_docstring or is_main or is_gradient, (
        path,
        ast.unparse(node),
      )
