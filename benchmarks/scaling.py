"""The cost of a train step on several devices, as the compiler reports it; runs no step.

Run from the repository's root:
  JAX_NUM_CPU_DEVICES=8 JAX_PLATFORMS=cpu python -m benchmarks.scaling [--out=scaling.json]
    [--config=configs/imagenet_1536_20.py] [--config.parallel.fsdp=8] [--config...]
    [--devices=1,2,4,8] [--batch_per_device=2] [--group_size=2]

The global batch grows with the number of devices. A group of BatchNorm and Mixup is one device's
share of it, as in the recipe with 64 images on each of its GPUs, unless --group_size is set. If
there are fewer devices than config.parallel.fsdp, the state is sharded over all of them. For each
collective in the optimized program the tables state how often a step runs it, its payload on one
device (the whole array, also for a gather or scatter), and the bytes that one device sends in a
ring. The compiler's own counts of operations and bytes omit custom calls and count one iteration of
each loop.
"""

from collections import defaultdict
import json
import pathlib
import re
import time
from typing import Any

from absl import app, flags
import jax
from ml_collections import config_dict, config_flags

from benchmarks.collectives import Array, collectives
from benchmarks.lowered import lower_train_step
from convmixer_jax.parallel import sharding

GRADIENTS, PARAMETERS, STATISTICS = "gradients", "parameters", "BatchNorm statistics"
METRICS, OTHER = "metrics and norms", "other"


def part(kind: str, array: Array, parameter_sizes: set[int]) -> str:
  """The part of the step that an array of a collective belongs to.

  Args:
    kind: one of `collectives.KINDS`.
    array: one of the collective's arrays.
    parameter_sizes: numbers of elements of the model's parameters. An array of any other size is a
      feature map or an image, thus "other", unless it is a scalar.
  """
  if not array.shape and array.dtype != "pred":
    return METRICS
  if array.size not in parameter_sizes:
    return OTHER
  if kind == "all-gather":
    return PARAMETERS
  if "transpose(" in array.source:
    return GRADIENTS
  return STATISTICS if "_norm" in array.source else OTHER


def at_size(
  config: config_dict.ConfigDict, devices: int, batch_per_device: int, group_size: int | None = None
) -> config_dict.ConfigDict:
  """The config with this many images per device, by default in one group."""
  config = config.copy_and_resolve_references()
  config.data.batch_size = devices * batch_per_device
  config.data.group_size = group_size or batch_per_device
  config.parallel.fsdp = min(config.parallel.fsdp, devices)
  return config


def measure(config: config_dict.ConfigDict, devices: int) -> dict[str, Any]:
  """Compiles the step for this many devices; returns what `print_rows` prints."""
  mesh = sharding.make_mesh(jax.devices()[:devices], config.parallel.fsdp)
  start = time.perf_counter()
  lowered, state = lower_train_step(config, mesh)
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  sizes = {leaf.size for leaf in jax.tree.leaves(state.params)}
  found = collectives(compiled.as_text())
  rows: dict[tuple[str, str, int, bool], dict[str, Any]] = defaultdict(
    lambda: {"operations": 0, "arrays": 0, "bytes": 0, "sent": 0.0, "sources": set()}
  )
  for collective in found:
    parts = [part(collective.kind, array, sizes) for array in collective.arrays]
    share = collective.traffic / collective.bytes
    for name, array in zip(parts, collective.arrays, strict=True):
      row = rows[collective.kind, name, collective.devices, collective.is_bounded]
      row["arrays"] += collective.times
      row["bytes"] += collective.times * array.bytes
      row["sent"] += collective.times * array.bytes * share
      row["sources"].add(re.sub(r"\d+", "*", array.source))  # the same for all blocks
    for name in set(parts):
      key = collective.kind, name, collective.devices, collective.is_bounded
      rows[key]["operations"] += collective.times
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  return {
    "devices": devices,
    "batch": config.data.batch_size,
    "seconds": seconds,
    "operations": sum(c.times for c in found),
    "flops": cost["flops"],
    "bytes_accessed": cost["bytes accessed"],
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "collectives": [
      dict(zip(("kind", "part", "group", "is_bounded"), key, strict=True), **row)
      | {"sources": sorted(row["sources"])}
      for key, row in rows.items()
    ],
  }


def print_rows(results: list[dict[str, Any]]) -> None:
  """Prints two Markdown tables, one of the devices and one of the collectives.

  An operation into which the compiler has combined several parts counts once for each part.
  "at least" marks operations in loops whose trip count is not known at compile time.
  """
  print("\n| devices, images | GFLOP per image | GB accessed | arguments, GB | temporaries, GB "
        "| collectives | compiled in, s |\n" + "|---" * 7 + "|")  # fmt: skip
  for r in results:
    per_image = r["flops"] * r["devices"] / r["batch"]
    print(
      f"| {r['devices']}, {r['batch']} | {per_image / 1e9:.0f} | {r['bytes_accessed'] / 1e9:.1f} "
      f"| {r['arguments'] / 1e9:.3f} | {r['temporaries'] / 1e9:.2f} | {r['operations']} "
      f"| {r['seconds']:.0f} |"
    )
  print("\n| devices | kind | of | for | operations | arrays | payload, MB | sent by one, MB |\n"
        + "|---" * 8 + "|")  # fmt: skip
  for r in results:
    for c in r["collectives"]:
      prefix = "" if c["is_bounded"] else "at least "
      print(
        f"| {r['devices']} | {c['kind']} | {c['group']} | {c['part']} "
        f"| {prefix}{c['operations']:,} | {c['arrays']:,} | {c['bytes'] / 1e6:,.3f} "
        f"| {c['sent'] / 1e6:,.3f} |"
      )
  others = {
    s for r in results for c in r["collectives"] if c["part"] == OTHER for s in c["sources"]
  }
  print(
    "\nOther collectives come from:", *sorted(others) or ["nothing, there are none"], sep="\n  "
  )


def main(argv: list[str]) -> None:
  """Prints the tables and writes them as JSON."""
  del argv
  arguments = flags.FLAGS
  results = []
  for devices in map(int, arguments.devices):
    config = at_size(arguments.config, devices, arguments.batch_per_device, arguments.group_size)
    results.append(measure(config, devices))
  device = jax.devices()[0].device_kind
  print(f"{arguments.config.parallel.to_dict()}, JAX {jax.__version__}, compiled for {device}")
  print_rows(results)
  if arguments.out:
    settings = {"config": arguments.config.to_dict(), "jax": jax.__version__, "device": device}
    text = json.dumps(settings | {"results": results}, indent=1)
    pathlib.Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", "configs/imagenet_1536_20.py", "Config to compile.")
  flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices.")
  flags.DEFINE_integer("batch_per_device", 2, "Images per device, an even number.", 1)
  flags.DEFINE_integer("group_size", None, "Images per group; default those of one device.", 1)
  flags.DEFINE_string("out", "", "JSON file to write.")
  app.run(main)
