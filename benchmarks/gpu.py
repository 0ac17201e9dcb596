"""Depthwise convolution and whole models on one GPU in bfloat16: XLA, our kernels, PyTorch.

With jax, flax, optax and torch installed, run from the repository's root:
  python -m benchmarks.gpu [--seconds=540] [--out=gpu.json] [--smoke]

Prints one JSON object, and rewrites it to --out after each part. Every part runs in its own
process, so a part that fails, hangs or breaks the GPU's context does not affect the others. Its
rows so far are kept, and the failure becomes a row as well. Times are medians over rounds of calls
that are queued without waiting in between, on random data larger than the L2 cache. "error" is the
norm of the difference from XLA's result over the norm of that result, on the first two feature maps
of the batch. --smoke runs everything once on CPU with tiny shapes; its times are meaningless.
"""

import argparse
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple


class Model(NamedTuple):
  """A ConvMixer and its batch."""

  dim: int
  depth: int
  kernel: int
  patch: int
  activation: str
  batch: int
  size: int

  @property
  def map_shape(self) -> tuple[int, int, int, int]:
    """Shape of the feature maps, (b, h, w, c)."""
    side = self.size // self.patch
    return self.batch, side, side, self.dim


MODELS = {
  "1536/20": Model(1536, 20, 9, 7, "gelu", 64, 224),
  "768/32": Model(768, 32, 7, 7, "relu", 64, 224),
  "1024/20": Model(1024, 20, 9, 14, "gelu", 64, 224),
  "256/8 k5 p2": Model(256, 8, 5, 2, "gelu", 512, 32),
  "256/8 k9 p1": Model(256, 8, 9, 1, "gelu", 256, 32),
}
CLASSES = 10
# Maximum seconds, the most important part first.
PARTS = {
  "peak": 40,
  "jax ops 1536/20": 80,
  "torch ops 1536/20": 40,
  "jax model 1536/20": 90,
  "torch model 1536/20": 120,
  "jax ops 256/8 k5 p2": 50,
  "torch ops 256/8 k5 p2": 30,
  "jax model 256/8 k5 p2": 60,
  "torch model 256/8 k5 p2": 60,
  "jax augmentation 768/32": 40,
  "jax ops 768/32": 50,
  "jax ops 1024/20": 50,
  "jax ops 256/8 k9 p1": 50,
  "torch ops 768/32": 30,
  "torch ops 1024/20": 30,
  "torch ops 256/8 k9 p1": 30,
  "jax model 768/32": 90,
  "torch model 768/32": 120,
  "jax model 1024/20": 60,
  "torch model 1024/20": 90,
  "jax model 256/8 k9 p1": 60,
  "torch model 256/8 k9 p1": 60,
}


class Recorder:
  """Appends rows to a file as they are measured.

  Args:
    path: file to append to.
    part: name of the part, written into every row.
    seconds: time after which no new measurement begins.
  """

  def __init__(self, path: pathlib.Path, part: str, seconds: float):
    self._file, self._part = path.open("a"), part
    self._deadline = time.monotonic() + seconds

  def row(self, **values: Any) -> None:
    """Writes a row."""
    self._file.write(json.dumps({"part": self._part, **values}) + "\n")
    self._file.flush()

  @contextlib.contextmanager
  def attempt(self, **names: Any):
    """Yields a dictionary for results; an exception ends only the block and becomes a row."""
    if time.monotonic() > self._deadline:
      self.row(**names, skipped="out of time")
      yield None
      return
    values: dict[str, Any] = {}
    try:
      yield values
    except Exception as error:
      values["failed"] = f"{type(error).__name__}: {error}"[:1000]
    self.row(**names, **values)


def measure(call: Callable[[], Any], wait: Callable[[Any], Any], smoke: bool) -> float:
  """Seconds of a call; `wait` blocks until a result is ready."""
  wait(call())  # compiles
  if smoke:
    return 0.0
  start = time.perf_counter()
  wait(call())
  once = time.perf_counter() - start
  if once > 1:
    return once
  calls = max(1, min(100, int(0.1 / once)))

  def one_round() -> float:
    start = time.perf_counter()
    for _ in range(calls):
      result = call()
    wait(result)
    return (time.perf_counter() - start) / calls

  return statistics.median(one_round() for _ in range(5))


def run_attempts(attempts: list, recorder: Recorder, wait: Callable, smoke: bool, **names) -> None:
  """Writes a row for each (names, function that returns the call and further values)."""
  for more_names, make in attempts:
    with recorder.attempt(**names, **more_names) as values:
      if values is not None:
        call, more = make()
        seconds = measure(call, wait, smoke)
        values |= {"ms": 1e3 * seconds} | {
          name: value(seconds) if callable(value) and seconds else value
          for name, value in more.items()
          if seconds or not callable(value)
        }


def peak(recorder: Recorder, smoke: bool) -> None:
  """Records the device, and the speed of a large matrix product in both frameworks."""
  import jax
  import jax.numpy as jnp
  import torch

  size = 64 if smoke else 8192
  recorder.row(device=jax.devices()[0].device_kind)
  if torch.cuda.is_available():
    recorder.row(device=torch.cuda.get_device_name(), cuda=torch.version.cuda)
  rate = {"tflops": lambda seconds: 2e-12 * size**3 / seconds}

  def with_jax() -> tuple[Callable, dict]:
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return lambda: product(a, b), rate

  def with_torch() -> tuple[Callable, dict]:
    a, b = torch.randn((2, size, size), dtype=torch.bfloat16, device=torch_device()).unbind()
    return lambda: a @ b, rate

  names = {"operation": f"matrix product {size}"}
  for framework, make, wait in (
    ("jax", with_jax, jax.block_until_ready),
    ("torch", with_torch, torch_wait),
  ):
    run_attempts([({"implementation": framework}, make)], recorder, wait, smoke, **names)


def jax_ops(recorder: Recorder, model: Model, smoke: bool) -> None:
  """The forward pass and both gradients: our kernels, then XLA's."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from convmixer_jax.depthwise import pallas_toeplitz, xla

  keys = jax.random.split(jax.random.key(0), 3)
  make = jax.jit(jax.random.normal, static_argnums=(1, 2))
  x, g = (make(key, model.map_shape, jnp.bfloat16) for key in keys[:2])
  kernel = make(keys[2], (model.kernel, model.kernel, model.dim), jnp.bfloat16)
  on_cpu = jax.default_backend() == "cpu"
  pallas = {"interpret": on_cpu}

  reference = {
    "forward": lambda x, g: xla.forward(x, kernel),
    "input gradient": lambda x, g: xla.backward(x, kernel, g)[0],
    "kernel gradient": lambda x, g: xla.backward(x, kernel, g)[1],
  }

  @functools.cache
  def expected(operation: str) -> Any:
    return jax.jit(reference[operation])(x[:2], g[:2])

  def error(operation: str, function: Callable) -> float:
    def relative(a: Any, b: Any) -> float:
      a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
      return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return max(jax.tree.leaves(jax.tree.map(relative, function(x[:2], g[:2]), expected(operation))))

  def attempt(operation: str, function: Callable) -> tuple[Callable, dict]:
    jitted = jax.jit(function)
    return lambda: jitted(x, g), {"error": error(operation, jitted)}

  # The tensor-core kernels take channel-major maps; "transposed" starts and ends channels last.
  x_cbhw, g_cbhw = (a.transpose(3, 0, 1, 2) for a in (x, g))

  def channel_major(operation: str, x_cbhw: Any, g_cbhw: Any) -> Any:
    low = ((model.kernel - 1) // 2,) * 2  # kernels are odd: mirrored padding is the same
    if operation == "kernel gradient":
      return pallas_toeplitz.kernel_gradient(x_cbhw, g_cbhw, kernel.shape[:2], **pallas)
    if operation == "input gradient":
      return pallas_toeplitz.correlate(g_cbhw, kernel[::-1, ::-1], low=low, **pallas)
    return pallas_toeplitz.correlate(x_cbhw, kernel, low=low, **pallas)

  def transposed(operation: str, x: Any, g: Any) -> Any:
    result = channel_major(operation, x.transpose(3, 0, 1, 2), g.transpose(3, 0, 1, 2))
    return result if operation == "kernel gradient" else result.transpose(1, 2, 3, 0)

  def attempt_channel_major(operation: str) -> tuple[Callable, dict]:
    jitted = jax.jit(functools.partial(channel_major, operation))
    return lambda: jitted(x_cbhw, g_cbhw), {}

  attempts = []
  for operation in ("forward", "input gradient", "kernel gradient"):
    names = {"operation": operation, "implementation": "pallas cbhw"}
    attempts.append((names, functools.partial(attempt_channel_major, operation)))
    names = {"operation": operation, "implementation": "pallas cbhw, transposed"}
    function = functools.partial(transposed, operation)
    attempts.append((names, functools.partial(attempt, operation, function)))
  for operation, function in reference.items():
    names = {"operation": operation, "implementation": "xla"}
    attempts.append((names, functools.partial(attempt, operation, function)))
  run_attempts(attempts, recorder, jax.block_until_ready, smoke)


def jax_model(recorder: Recorder, model: Model, smoke: bool) -> None:
  """Train steps and inference of our model, with our depthwise kernels and with XLA's."""
  import jax
  import jax.numpy as jnp
  import optax

  from convmixer_jax import ConvMixer
  from convmixer_jax.optim.optimizer import make_optimizer
  from convmixer_jax.training import metrics

  image = jax.random.normal(jax.random.key(0), (model.batch, model.size, model.size, 3))
  target = jax.nn.one_hot(jnp.arange(model.batch) % CLASSES, CLASSES)
  optimizer = make_optimizer(optax.constant_schedule(1e-3), weight_decay=0.01, decay="all")
  rate = {"images_per_sec": lambda seconds: model.batch / seconds}

  def train_step(net: ConvMixer, state: tuple) -> tuple:
    params, stats, opt_state = state

    def loss_fn(params):
      variables = {"params": params, "batch_stats": stats}
      logits, updated = net.apply(variables, image, train=True, mutable=["batch_stats"])
      return metrics.cross_entropy(logits, target).mean(), updated["batch_stats"]

    gradients, stats = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state

  def make(mode: str, implementation: str) -> tuple[Callable, dict]:
    dim, depth, kernel, patch, activation, *_ = model
    attributes = {"dtype": jnp.bfloat16, "depthwise": implementation}
    net = ConvMixer(dim, depth, kernel, patch, CLASSES, activation, **attributes)
    variables = jax.jit(net.init)(jax.random.key(1), image[:1])
    if mode == "inference":
      apply = jax.jit(net.apply)
      return lambda: apply(variables, image), rate
    params = variables["params"]
    states = [(params, variables["batch_stats"], jax.jit(optimizer.init)(params))]
    step = jax.jit(functools.partial(train_step, net), donate_argnums=0)

    def call() -> Any:
      states[0] = step(states[0])
      return states[0]

    return call, rate

  attempts = [
    (
      {"operation": mode, "implementation": name},
      functools.partial(make, mode, name),
    )
    for name in ("pallas", "xla")
    for mode in ("train", "inference")
  ]
  run_attempts(attempts, recorder, jax.block_until_ready, smoke)


def jax_augmentation(recorder: Recorder, model: Model, smoke: bool) -> None:
  """The augmentation before a train step: only flips, and the paper's whole policy."""
  import jax
  import jax.numpy as jnp

  from convmixer_jax.augment import Augmentation, policy

  image = jax.random.randint(
    jax.random.key(0), (model.batch, model.size, model.size, 3), 0, 256, jnp.uint8
  )
  label = jnp.arange(model.batch) % CLASSES
  flips = Augmentation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), CLASSES)
  whole = dataclasses.replace(
    flips,
    policy=policy.parse("rand-m9-mstd0.5-inc1"),
    label_smoothing=0.1,
    mixup_alpha=0.5,
    cutmix_alpha=0.5,
    erase_probability=0.25,
  )

  def make(augmentation: Augmentation) -> tuple[Callable, dict]:
    jitted = jax.jit(augmentation)
    return lambda: jitted(jax.random.key(1), image, label), {
      "images_per_sec": lambda seconds: model.batch / seconds
    }

  attempts = [
    ({"operation": "augmentation", "implementation": name}, functools.partial(make, augmentation))
    for name, augmentation in (("flips", flips), ("whole policy", whole))
  ]
  run_attempts(attempts, recorder, jax.block_until_ready, smoke)


def torch_device() -> str:
  """The GPU if there is one, else the CPU."""
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


def torch_wait(result: Any) -> None:
  """Blocks until the GPU has finished."""
  import torch

  del result
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def torch_ops(recorder: Recorder, model: Model, smoke: bool) -> None:
  """The forward pass and both gradients in both memory formats."""
  import torch

  torch.backends.cudnn.benchmark = True
  side, low = model.map_shape[1], model.kernel // 2
  shape = (model.batch, model.dim, side, side)
  like = {"dtype": torch.bfloat16, "device": torch_device()}

  def make(memory_format: Any, mask: tuple[bool, ...] | None) -> tuple[Callable, dict]:
    x, g = (torch.randn(shape, **like).to(memory_format=memory_format) for _ in range(2))
    kernel = torch.randn((model.dim, 1, model.kernel, model.kernel), **like)
    pair = [1, 1]
    if mask is None:
      settings = {"padding": low, "groups": model.dim}
      return lambda: torch.nn.functional.conv2d(x, kernel, **settings), {}
    rest = (pair, [low, low], pair, False, [0, 0], model.dim, mask)
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(g, x, kernel, None, *rest), {}

  operations = {
    "forward": None,
    "input gradient": (True, False, False),
    "kernel gradient": (False, True, False),
  }
  formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
  attempts = [
    (
      {"operation": operation, "implementation": f"torch {name}"},
      functools.partial(make, memory_format, mask),
    )
    for name, memory_format in formats.items()
    for operation, mask in operations.items()
  ]
  with torch.no_grad():
    run_attempts(attempts, recorder, torch_wait, smoke)


def torch_model(recorder: Recorder, model: Model, smoke: bool) -> None:
  """Train steps and inference of the reference, in both memory formats, also with torch.compile.

  All use AMP in bfloat16. Inference is also measured with bfloat16 weights, which AMP would
  otherwise cast in each call.
  """
  import torch

  from tests.golden.torch_convmixer import conv_mixer

  torch.backends.cudnn.benchmark = True
  device = torch_device()
  rate = {"images_per_sec": lambda seconds: model.batch / seconds}

  def make(
    mode: str, memory_format: Any, is_compiled: bool, is_cast: bool
  ) -> tuple[Callable, dict]:
    dim, depth, kernel, patch, activation, batch, size = model
    net = conv_mixer(dim, depth, kernel, patch, CLASSES, activation).train(mode == "train")
    dtype = torch.bfloat16 if is_cast else torch.float32
    net = net.to(device, dtype, memory_format=memory_format)
    image = torch.randn((batch, 3, size, size), device=device)
    image = image.to(dtype, memory_format=memory_format)
    label = torch.arange(batch, device=device) % CLASSES
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.01, fused=True)
    apply = torch.compile(net) if is_compiled else net

    def forward() -> Any:
      with torch.autocast(device, torch.bfloat16, enabled=not is_cast):
        return apply(image)

    def step() -> None:
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(forward().float(), label).backward()
      optimizer.step()

    def inference() -> Any:
      with torch.inference_mode():
        return forward()

    return step if mode == "train" else inference, rate

  formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
  attempts = [
    (
      {
        "operation": mode,
        "implementation": f"torch {name}{', bf16' * is_cast}{', compile' * is_compiled}",
      },
      functools.partial(make, mode, memory_format, is_compiled, is_cast),
    )
    for is_compiled in (False, True)
    for name, memory_format in formats.items()
    for mode, is_cast in (("train", False), ("inference", False), ("inference", True))
    if not (smoke and is_compiled)  # needs a C++ compiler on CPU
  ]
  run_attempts(attempts, recorder, torch_wait, smoke)


def run_part(part: str, path: pathlib.Path, seconds: float, smoke: bool) -> None:
  """Runs one part in this process."""
  recorder = Recorder(path, part, seconds)
  if part == "peak":
    peak(recorder, smoke)
    return
  framework, kind, name = part.split(maxsplit=2)
  model = MODELS[name]
  if smoke:
    model = Model(8, 1, model.kernel, 1, model.activation, 2, 8)
  functions = {
    "jax ops": jax_ops,
    "jax model": jax_model,
    "jax augmentation": jax_augmentation,
    "torch ops": torch_ops,
    "torch model": torch_model,
  }
  functions[f"{framework} {kind}"](recorder, model, smoke)


def run_all(options: argparse.Namespace) -> None:
  """Runs every part in its own process, until the time is up."""
  deadline = time.monotonic() + options.seconds
  rows_path = options.out.with_suffix(".jsonl")
  rows_path.write_text("")
  environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  versions = {}
  for package in ("jax", "jaxlib", "flax", "torch", "triton"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)

  def result() -> str:
    rows = []
    for line in rows_path.read_text().splitlines():
      with contextlib.suppress(ValueError):  # an empty line, or a truncated one
        rows.append(json.loads(line))
    return json.dumps({"versions": versions, "smoke": options.smoke, "rows": rows}, indent=1)

  for part, at_most in PARTS.items():
    seconds = min(at_most, deadline - time.monotonic() - 5)
    failed = "out of time"
    if seconds > 10:
      command = [sys.executable, "-m", "benchmarks.gpu", f"--part={part}"]
      command += [f"--out={options.out}", f"--seconds={seconds - 10}"]
      command += ["--smoke"] * options.smoke
      try:
        done = subprocess.run(
          command, env=environment, timeout=seconds, capture_output=True, text=True, check=False
        )
        failed = done.stderr[-1000:] if done.returncode else ""
      except subprocess.TimeoutExpired:
        failed = f"stopped after {seconds:.0f} s"
    if failed:
      with rows_path.open("a") as file:
        file.write("\n" + json.dumps({"part": part, "failed": failed}) + "\n")
    options.out.write_text(result())
  print(options.out.read_text())


def main() -> None:
  """Parses the command line and runs all parts, or one."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--seconds", type=float, default=540, help="time limit for all parts")
  parser.add_argument("--out", type=pathlib.Path, default="gpu.json", help="JSON file to write")
  parser.add_argument("--smoke", action="store_true", help="tiny shapes, for a test on CPU")
  parser.add_argument("--part", help="run only this part and append its rows to OUT's .jsonl")
  options = parser.parse_args()
  if options.part:
    run_part(options.part, options.out.with_suffix(".jsonl"), options.seconds, options.smoke)
  else:
    run_all(options)


if __name__ == "__main__":
  main()
