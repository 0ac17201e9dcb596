import http.server
import logging
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from convmixer_jax import create_model, pretrained
from convmixer_jax.errors import UserError
from convmixer_jax.pretrained.trained import imagenet
from tests.pretrained.goldens import MODELS, assert_same_bits, golden_file, load_golden

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def hub(monkeypatch):
  """A fake hub with `hub.files` by repository; `hub.asked` collects the requests."""
  stand_in = types.ModuleType("huggingface_hub")
  stand_in.files, stand_in.cached, stand_in.asked = {}, {}, []

  def get_hf_file_metadata(url, timeout):
    if url[0] not in stand_in.files:
      logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s [Retry 1/5].")
      raise FileNotFoundError("cannot find the requested files in the local cache.\nmore")

  def hf_hub_download(repository, file):
    stand_in.asked.append((repository, file))
    return str(stand_in.files[repository])

  stand_in.try_to_load_from_cache = lambda repository, file: stand_in.cached.get(repository)
  stand_in.hf_hub_url = lambda repository, file: (repository, file)
  stand_in.get_hf_file_metadata = get_hf_file_metadata
  stand_in.hf_hub_download = hf_hub_download
  monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
  return stand_in


@pytest.mark.parametrize("source", ["convmixer_768_32", "timm/convmixer_768_32.in1k"])
def test_a_name_brings_the_hubs_file_and_the_activation(hub, caplog, source):
  hub.files["timm/convmixer_768_32.in1k"] = golden_file("relu_odd")
  model, variables = pretrained.load(source)
  assert hub.asked == [("timm/convmixer_768_32.in1k", "model.safetensors")]
  assert model == MODELS["relu_odd"] and "assuming" not in caplog.text
  assert pretrained.read(source).preprocessing == imagenet()
  assert_same_bits(variables, load_golden("relu_odd")[1])


def test_create_model_loads_released_weights(hub, caplog):
  hub.files["timm/convmixer_768_32.in1k"] = golden_file("relu_odd")
  with caplog.at_level(logging.INFO):
    model, variables = create_model("convmixer_768_32", pretrained=True, num_classes=3, dropout=0.1)
  assert model == MODELS["relu_odd"].clone(num_classes=3, dropout=0.1)
  assert variables["params"]["head"]["bias"].shape == (3,) and "is random" in caplog.text
  oracle = load_golden("relu_odd")[1]
  assert_same_bits(variables["batch_stats"], oracle["batch_stats"])
  for wrong in ({"kernel_size": 5}, {"activation": "gelu"}, {"in_chans": 1}):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* does not match the released"):
      create_model("convmixer_768_32", pretrained=True, **wrong)


def test_cached_weights_need_no_network(hub):
  hub.cached["timm/convmixer_768_32.in1k"] = str(golden_file("relu_odd"))
  hub.get_hf_file_metadata = hub.hf_hub_download = None  # neither is called
  assert pretrained.load("convmixer_768_32")[0] == MODELS["relu_odd"]


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
  """The timeout applies even to DNS lookups, which ignore the timeouts of libraries."""
  release = threading.Event()
  hub.get_hf_file_metadata = lambda url, timeout: release.wait(60)
  monkeypatch.setattr("convmixer_jax.pretrained.hub._SECONDS", 0.1)
  start = time.monotonic()
  with pytest.raises(UserError, match=r"cannot fetch .*: no response within 0.1 seconds\. Unset"):
    pretrained.load("convmixer_768_32")
  assert time.monotonic() - start < 10 and not hub.asked
  release.set()


@pytest.mark.slow
@pytest.mark.parametrize("port", ["closed", "silent"])
def test_the_command_without_a_network_ends_in_one_line(tmp_path, port):
  """Prints the package's reason once, without the warnings of its retries."""
  pytest.importorskip("huggingface_hub")
  (tmp_path / "a.jpg").touch()
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    if port == "silent":
      listener.listen(50)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    run = subprocess.run(
      [sys.executable, "-m", "convmixer_jax.predict", "--init_from=convmixer_768_32", "a.jpg"],
      cwd=tmp_path, capture_output=True, text=True, timeout=120,
      env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
           "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
  assert time.monotonic() - start < 40  # at most 8 for the hub; the rest is imports
  assert run.returncode == 1
  (line,) = run.stderr.splitlines()
  reason = "Connection refused" if port == "closed" else "timed out|no response within 8 seconds"
  assert re.match(f"error: cannot fetch timm/convmixer_768_32.in1k: .*({reason})", line), line


class Hub(http.server.BaseHTTPRequestHandler):
  """Responds like the hub, for one file: the golden one."""

  content = golden_file("relu_odd").read_bytes()

  def do_HEAD(self):
    self.send_response(200)
    self.send_header("ETag", '"etag"')
    self.send_header("X-Repo-Commit", "0" * 40)
    self.send_header("Content-Length", str(len(self.content)))
    self.end_headers()

  def do_GET(self):
    self.do_HEAD()
    self.wfile.write(self.content)

  def log_message(self, *args):
    pass


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_to_only_costs_the_cache():
  pytest.importorskip("huggingface_hub")
  code = (
    "from convmixer_jax import pretrained;print(pretrained.load('convmixer_768_32')[0].activation)"
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = subprocess.run(
      [sys.executable, "-c", code],
      capture_output=True, text=True, timeout=120,
      env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
           "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
           "HF_HOME": "/proc/none"},  # not even root can create a directory there
    )  # fmt: skip
    server.shutdown()
  assert (run.returncode, run.stdout) == (0, "relu\n"), run.stderr
  assert run.stderr.count("cannot be cached for the next start") == 1


def test_what_to_do_when_weights_cannot_be_fetched(hub, monkeypatch, caplog):
  with pytest.raises(UserError, match=r"cannot fetch timm/convmixer_1536_20.in1k: .*cache\. Unset"):
    create_model("convmixer_1536_20", pretrained=True)
  assert not caplog.text  # no warnings from the package
  with pytest.raises(UserError, match="no released weights; available: convmixer_1536_20,"):
    create_model("convmixer_256_8_ks5_p2_cifar10", pretrained=True)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"pip install .*hub.*; or download .* and give its"):
    pretrained.load("convmixer_768_32")


def test_the_hubs_package_in_offline_mode(tmp_path, monkeypatch):
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=r"cannot fetch timm/convmixer_768_32\.in1k: .*HF_HUB"):
    pretrained.load("convmixer_768_32")
