import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "convmixer_jax"


def imports_of(path, package=PACKAGE):
  """Names of a package's modules that a file, or any file of a directory, imports."""
  prefix = [PACKAGE.name, *package.relative_to(PACKAGE).parts]
  found = set()
  for file in path.rglob("*.py") if path.is_dir() else [path]:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom):
        parts = (node.module or "").split(".")
        if parts[: len(prefix)] == prefix:
          inner = parts[len(prefix) :]
          found |= {inner[0]} if inner else {alias.name for alias in node.names}
  modules = {name for name in found if (package / name).is_dir()}
  return modules | {name for name in found if (package / f"{name}.py").is_file()}


def graph_of(package):
  """Of each module, and each package below, what it imports of the others."""
  paths = [path for path in package.iterdir() if path.suffix == ".py" or path.is_dir()]
  skipped = ("__init__", "__pycache__")
  return {
    path.stem: imports_of(path, package) - {path.stem} for path in paths if path.stem not in skipped
  }


GRAPH = graph_of(PACKAGE)
COMMANDS = {
  path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text()
}


def depth(name, graph=GRAPH):
  """Longest chain of imports below a module; recursion without end if there is a cycle."""
  return max((1 + depth(below, graph) for below in graph.get(name, ())), default=0)


def test_beside_folders_and_commands_there_is_little():
  others = {path.stem for path in PACKAGE.glob("*.py")} - COMMANDS
  assert others == {"__init__", "cli", "errors", "storage", "zoo"}


def test_imports_of_files_and_folders_point_one_way():
  depths = {name: depth(name) for name in GRAPH}
  assert max(depths, key=depths.__getitem__) in COMMANDS
  for leaf in ("errors", "native"):
    assert depths[leaf] == 0, leaf
  assert GRAPH["optim"] <= {"errors"}
  assert GRAPH["depthwise"] <= {"errors", "native"}
  assert GRAPH["model"] <= {"depthwise", "errors"}
  assert GRAPH["augment"] <= {"errors"}
  assert not COMMANDS & set().union(*(GRAPH[name] for name in GRAPH.keys() - COMMANDS))


def test_imports_inside_folders_point_one_way():
  for folder in PACKAGE.rglob("__init__.py"):
    graph = graph_of(folder.parent)
    for name in graph:
      assert depth(name, graph) < len(graph), (folder.parent.name, name)


def test_what_images_go_through_knows_nothing_of_policies():
  graph = graph_of(PACKAGE / "augment")
  assert graph["op"] == graph["rounding"] == graph["each"] == set()
  assert graph["photometric"] == graph["geometric"] == {"op", "rounding"}
  assert depth("rand_augment", graph) == max(depth(name, graph) for name in graph)


def test_only_the_drawings_know_matplotlib():
  users = {path for path in PACKAGE.rglob("*.py") if "import matplotlib" in path.read_text()}
  assert {path.parent for path in users} == {PACKAGE / "results" / "figures"}
  graph = graph_of(PACKAGE / "results")
  assert [name for name in graph if "figures" in graph[name]] == []


def length(function):
  return function.end_lineno - function.lineno


def test_functions_stay_small():
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
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
