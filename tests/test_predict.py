import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from convmixer_jax import class_names, predict
from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer
from convmixer_jax.preprocess import Preprocess
from convmixer_jax.train import train

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def photo_files(photos, tmp_path):
  """Seven photographs of several sizes."""
  files = []
  for number in range(7):
    picture = PIL.Image.fromarray(photos[number % 4]).resize((40 + 5 * number, 48))
    files.append(tmp_path / "photos" / f"{number}.{'png' if number % 2 else 'jpg'}")
    files[-1].parent.mkdir(exist_ok=True)
    picture.save(files[-1])
  return files


@pytest.fixture
def model():
  return ConvMixer(8, 1, 3, 8, 6)


@pytest.fixture
def variables(model):
  return model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.fixture
def view():
  names = ["ant", "bee", "cat", "dog", "elk", "fox"]
  return predict.View(Preprocess(32, "random_resized"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), names)


def by_hand(model, variables, view, file):
  """The probabilities by Pillow and NumPy: timm's preprocessing (short side to 33, centre 32)."""
  picture = PIL.Image.open(file).convert("RGB")
  w, h = picture.size
  w, h = (33, int(33 * h / w)) if w < h else (int(33 * w / h), 33)
  left, top = round((w - 32) / 2), round((h - 32) / 2)
  picture = picture.resize((w, h), PIL.Image.Resampling.BICUBIC)
  pixels = np.asarray(picture.crop((left, top, left + 32, top + 32)))
  image = (pixels / 255 - np.array(view.mean)) / np.array(view.std)
  logits = np.asarray(model.apply(variables, jnp.asarray(image[None], jnp.float32))[0])
  return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_probabilities_are_those_by_hand_whatever_the_batch(
  model, variables, view, photo_files, batch_size
):
  found = list(predict.predict(model, variables, view, photo_files, batch_size=batch_size))
  assert [p.file for p in found] == photo_files
  for prediction in found:
    expected = by_hand(model, variables, view, prediction.file)
    order = np.argsort(-expected)[:5]
    assert [name for name, _ in prediction.classes] == [view.names[i] for i in order]
    np.testing.assert_allclose([p for _, p in prediction.classes], expected[order], atol=2e-4)


def test_damaged_images_are_reported_in_their_place_and_the_rest_is_as_without_them(
  model, variables, view, photo_files
):
  expected = list(predict.predict(model, variables, view, photo_files))
  damaged = photo_files[0].with_name("damaged.jpg")
  damaged.write_bytes(photo_files[0].read_bytes()[:200])
  empty = photo_files[0].with_name("empty.png")
  empty.touch()
  files = [damaged, *photo_files[:3], empty, *photo_files[3:]]
  found = list(predict.predict(model, variables, view, files, batch_size=3))
  assert [p.file for p in found] == files
  assert "cannot be decoded" in found[0].error and "0 bytes" in found[4].error
  good = [p for p in found if p.error is None]
  for a, b in zip(good, expected, strict=True):
    np.testing.assert_allclose([p for _, p in a.classes], [p for _, p in b.classes], rtol=1e-5)


def test_nothing_but_damaged_images(model, variables, view, tmp_path):
  (tmp_path / "a.jpg").write_bytes(b"no image")
  (found,) = predict.predict(model, variables, view, [tmp_path / "a.jpg"])
  assert found.classes == [] and found.error


def test_it_is_compiled_once(model, variables, view, photo_files):
  with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
    traced = []
    apply = ConvMixer.apply
    patch.setattr(ConvMixer, "apply", lambda *a, **k: traced.append(1) or apply(*a, **k))
    list(predict.predict(model, variables, view, photo_files, batch_size=3))
  assert len(traced) == 1


def test_images_are_decoded_ahead_while_the_first_is_waited_for():
  """The second item is computed before the first result is taken, and never more than `count`."""
  begun, release = [], threading.Event()

  def work(item):
    begun.append(item)
    release.wait(10) if item else None
    return -item

  pairs = predict._ahead(work, range(9), 3)
  assert next(pairs) == (0, 0)
  release.set()
  assert list(pairs) == [(i, -i) for i in range(1, 9)]
  assert sorted(begun) == list(range(9))


def test_files_and_directories_are_found(photo_files):
  root = photo_files[0].parent
  (root / "notes.txt").write_text("no image")
  assert predict.find_images([str(root)]) == photo_files
  assert predict.find_images([str(photo_files[1]), str(root)]) == [photo_files[1], *photo_files]
  assert predict.find_images([str(root / "notes.txt")])  # as it was named
  for paths, message in (
    ([str(root / "none.jpg")], "does not exist"),
    ([], "no images"),
    ([str(root / "empty")], "no images"),
  ):
    (root / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
      predict.find_images(paths)


def test_the_view_of_released_weights_is_imagenets():
  view = predict.view_of("convmixer_768_32", ConvMixer(8, 1, 3, 7, 1000), 3)
  assert view.preprocess == Preprocess(224, "random_resized", eval_fraction=0.96)
  assert (view.mean, view.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  assert (view.names[0], view.names[281], view.names[999]) == ("tench", "tabby", "toilet tissue")
  assert len(set(view.names)) == 1000
  numbered = predict.view_of("some.safetensors", ConvMixer(8, 1, 3, 8, 3), 3, image_size=32)
  assert numbered.names == ["class 0", "class 1", "class 2"]
  with pytest.raises(UserError, match=r"patches of 9: set --image_size=216"):
    predict.view_of("some.safetensors", ConvMixer(8, 1, 3, 9, 3), 3)
  with pytest.raises(UserError, match="1 channels: only the workdir of a run tells"):
    predict.view_of("some.safetensors", ConvMixer(8, 1, 3, 8, 3), 1)


@pytest.fixture
def run_of_photos(configs, image_folder, tmp_path):
  """The workdir of a short run on `image_folder`."""
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=8, num_classes=2)
  config.data.update(dataset="folder", data_dir=str(image_folder), image_size=40, batch_size=8)
  config.data.update(eval_batch_size=8, cache="none")
  config.augment.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.run.update(epochs=1, max_steps=1)
  train(config, tmp_path / "run")
  return tmp_path / "run"


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "convmixer_jax.predict", *map(str, arguments)],
    cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300,
  )  # fmt: skip


def test_the_command_with_a_runs_workdir(run_of_photos, image_folder, tmp_path):
  """Names and preprocessing are the run's: an image of the run's size is not resized."""
  view = predict.view_of(str(run_of_photos), ConvMixer(8, 1, 3, 8, 2), 3)
  assert (list(view.names), view.preprocess.image_size) == (["ant", "bee"], 40)
  file = image_folder / "test" / "ant" / "0.jpg"
  pixels = np.asarray(PIL.Image.open(file))
  np.testing.assert_array_equal(view.preprocess(file.read_bytes(), 3, None), pixels)

  good = command(f"--init_from={run_of_photos}", "--json", image_folder / "test")
  assert good.returncode == 0, good.stderr
  lines = [json.loads(line) for line in good.stdout.splitlines()]
  assert [pathlib.Path(line["file"]).parent.name for line in lines] == ["ant", "ant", "bee", "bee"]
  for line in lines:
    assert {c["name"] for c in line["classes"]} == {"ant", "bee"}
    np.testing.assert_allclose(sum(c["probability"] for c in line["classes"]), 1, rtol=1e-5)

  (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no more")
  bad = command(f"--init_from={run_of_photos}", tmp_path / "bad.jpg", file)
  assert bad.returncode == 1
  assert f"{tmp_path / 'bad.jpg'}: an image of 10 bytes cannot be decoded" in bad.stderr
  assert bad.stderr.endswith("error: 1 of 2 images could not be read, see above\n")
  assert "Traceback" not in bad.stderr
  assert len(bad.stdout.splitlines()) == 2 and "ant" in bad.stdout and "%" in bad.stdout


def test_mistakes_of_the_command_line_are_one_line(tmp_path):
  run = command(f"--init_from={tmp_path / 'none'}", ROOT / "nothing.jpg")
  assert (run.returncode, run.stderr.splitlines()[-1]) == (
    1, f"error: {ROOT / 'nothing.jpg'} does not exist")  # fmt: skip
  help = command("--help")
  assert "FILES" in help.stdout or "--init_from" in help.stdout


def test_names_of_a_run(configs, caplog):
  config = config_lib.read(configs / "digits.py")
  assert class_names.of_run(config) == [str(i) for i in range(10)]
  config.data.update(dataset="folder", data_dir="/nowhere")
  assert class_names.of_run(config)[3] == "class 3"
  assert "data are missing" in caplog.text
  config.data.dataset = "imagenet2012"
  assert class_names.of_run(config)[1] == "goldfish"
  assert class_names.readable(["n01443537", "other"]) == ["goldfish", "other"]
