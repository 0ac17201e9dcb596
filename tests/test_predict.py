import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import convert, export, predict, pretrained
from convmixer_jax.data import class_names
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.parallel.sharding import make_mesh
from convmixer_jax.pretrained import workdir
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel, imagenet
from convmixer_jax.training.build import make_evaluator
from convmixer_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def photo_files(photos, tmp_path):
  """Seven photographs of different sizes."""
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
  names = ("ant", "bee", "cat", "dog", "elk", "fox")
  return Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.96, names)


def predictions(model, *arguments, **options):
  return list(predict.predict(model.apply, *arguments, **options))


def by_hand(model, variables, view, file):
  """Probabilities with Pillow and NumPy, by timm's preprocessing (short side 33, centre 32)."""
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
  found = predictions(model, variables, view, photo_files, batch_size=batch_size)
  assert [p.file for p in found] == photo_files
  for prediction in found:
    expected = by_hand(model, variables, view, prediction.file)
    order = np.argsort(-expected)[:5]
    assert [name for name, _ in prediction.classes] == [view.class_names[i] for i in order]
    np.testing.assert_allclose([p for _, p in prediction.classes], expected[order], atol=2e-4)


def test_corrupt_images_are_reported_in_their_place_and_the_rest_is_as_without_them(
  model, variables, view, photo_files
):
  expected = predictions(model, variables, view, photo_files)
  corrupt = photo_files[0].with_name("corrupt.jpg")
  corrupt.write_bytes(photo_files[0].read_bytes()[:200])
  empty = photo_files[0].with_name("empty.png")
  empty.touch()
  files = [corrupt, *photo_files[:3], empty, *photo_files[3:]]
  found = predictions(model, variables, view, files, batch_size=3)
  assert [p.file for p in found] == files
  assert "cannot be decoded" in found[0].error and "0 bytes" in found[4].error
  good = [p for p in found if p.error is None]
  for a, b in zip(good, expected, strict=True):
    np.testing.assert_allclose([p for _, p in a.classes], [p for _, p in b.classes], rtol=1e-5)


def test_nothing_but_corrupt_images(model, variables, view, tmp_path):
  (tmp_path / "a.jpg").write_bytes(b"no image")
  (found,) = predictions(model, variables, view, [tmp_path / "a.jpg"])
  assert found.classes == [] and found.error


def test_it_is_compiled_once(model, variables, view, photo_files):
  with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
    traced = []
    apply = ConvMixer.apply
    patch.setattr(ConvMixer, "apply", lambda *a, **k: traced.append(1) or apply(*a, **k))
    predictions(model, variables, view, photo_files, batch_size=3)
  assert len(traced) == 1


def test_images_are_decoded_ahead_while_the_first_is_waited_for():
  """The second item is computed before the first result is used, but at most `count` ahead."""
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
  assert predict.find_images([str(root / "notes.txt")])  # because it is named explicitly
  missing = root / "none.jpg"
  assert predict.find_images([str(missing), str(photo_files[0])]) == [missing, photo_files[0]]
  (root / "empty" / "directory.jpg").mkdir(parents=True)
  for paths, message in (
    ([str(missing)], "none.jpg does not exist"),
    ([], "no images"),
    ([str(root / "empty")], "no images"),
  ):
    with pytest.raises(UserError, match=message):
      predict.find_images(paths)


def test_hidden_files_are_found_only_if_they_are_named(photo_files):
  root = photo_files[0].parent
  hidden = [root / "._0.jpg", root / ".cache" / "1.jpg", root / ".cache" / "deep" / "2.jpg"]
  for file in hidden:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(photo_files[0].read_bytes())
  assert predict.find_images([str(root)]) == photo_files
  assert predict.find_images([str(hidden[0])]) == hidden[:1]
  assert predict.find_images([str(root / ".cache")]) == hidden[1:]


def test_a_missing_file_is_reported_in_its_place_and_does_not_stop_the_others(
  model, variables, view, photo_files, capsys, monkeypatch
):
  missing = photo_files[0].with_name("none.jpg")
  weights = TrainedModel(model, variables, "gelu", view)
  monkeypatch.setattr(pretrained, "read", lambda *_, **__: weights)
  options = {
    "init_from": "x",
    "activation": None,
    "image_size": None,
    "batch_size": 2,
    "json": True,
  }
  monkeypatch.setattr(predict.flags, "FLAGS", types.SimpleNamespace(**options))
  with pytest.raises(UserError, match="1 of 3 images could not be read, see above"):
    predict.main(["predict", str(photo_files[0]), str(missing), str(photo_files[1])])
  out, err = capsys.readouterr()
  assert [json.loads(line)["file"] for line in out.splitlines()] == [*map(str, photo_files[:2])]
  assert err == f"{missing}: cannot be read: No such file or directory\n"


def weights_of(model, channels, preprocessing=None):
  shape = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, channels), "float32")
  variables = jax.eval_shape(model.init, jax.random.key(0), shape)
  return TrainedModel(model, variables, "gelu", preprocessing)


def test_weights_that_tell_nothing_get_imagenets_preprocessing_with_a_warning(caplog):
  weights = weights_of(ConvMixer(8, 1, 3, 7, 1000), 3)
  assert predict.preprocessing_of(weights, "plain.pth") == imagenet()
  assert "plain.pth does not say how images are preprocessed; assuming ImageNet's" in caplog.text
  told = imagenet()
  assert (told.image_size, told.crop_fraction) == (224, 0.96)
  assert (told.mean, told.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  names = told.class_names
  assert (names[0], names[281], names[999]) == ("tench", "tabby", "toilet tissue")
  assert len(set(names)) == 1000
  numbered = predict.preprocessing_of(weights_of(ConvMixer(8, 1, 3, 8, 3), 3), "plain.pth", 32)
  assert numbered.class_names == ("class 0", "class 1", "class 2") and numbered.image_size == 32
  with pytest.raises(UserError, match=r"patches of 9: set --image_size=216"):
    predict.preprocessing_of(weights_of(ConvMixer(8, 1, 3, 9, 3), 3), "plain.pth")
  with pytest.raises(UserError, match="1 channels, and does not say how they are normalised"):
    predict.preprocessing_of(weights_of(ConvMixer(8, 1, 3, 8, 3), 1), "plain.pth")


def test_what_weights_tell_is_used_without_a_warning(caplog):
  told = Preprocessing(8, (0.3,), (0.4,), 0.5, ("ant", "bee", "cat"))
  weights = weights_of(ConvMixer(8, 1, 3, 2, 3), 1, told)
  assert predict.preprocessing_of(weights, "a") == told
  assert predict.preprocessing_of(weights, "a", 16) == dataclasses.replace(told, image_size=16)
  assert not caplog.text


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
  """The workdir of a short run on digits, its config, and the test images as files."""
  root = tmp_path_factory.mktemp("digits")
  config = config_lib.read(ROOT / "configs" / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=2)
  config.run.update(epochs=1, max_steps=5)
  train(config, root / "run")
  source = open_source("digits", "test")
  for number in range(8):
    PIL.Image.fromarray(source.images[number, :, :, 0]).save(root / f"{number}.png")
  return root, config


@pytest.mark.parametrize("kind", ["run", "a.safetensors", "bundle", "a.stablehlo"])
def test_predictions_are_those_of_the_runs_evaluation_from_every_format(
  run_of_digits, tmp_path, kind, caplog
):
  """Uses the run's size (8, grey), mean, std and class names, without access to its data."""
  root, config = run_of_digits
  source = tmp_path / kind
  if kind == "run":
    source = root / "run"
  elif kind == "a.stablehlo":
    export.export(pretrained.read(root / "run"), source)
  else:
    convert.convert(str(root / "run"), source)
  caplog.clear()
  forward, variables, told = predict._open(str(source), None, None)
  assert (told.mean, told.std) == (config.augment.mean, config.augment.std)
  files = [root / f"{number}.png" for number in range(8)]
  found = [p.classes[0] for p in predict.predict(forward, variables, told, files)]
  expected = make_evaluator(config, make_mesh(), "test").predict(
    jax.device_get(pretrained.load(root / "run")[1])
  )
  assert [name for name, _ in found] == [str(label) for label in expected.predicted_n[:8]]
  np.testing.assert_allclose([p for _, p in found], expected.probability_n[:8], rtol=1e-4)
  assert "assuming" not in caplog.text


def test_a_computation_takes_no_other_size_or_activation(run_of_digits, tmp_path):
  export.export(pretrained.read(run_of_digits[0] / "run"), tmp_path / "a.stablehlo")
  for activation, size in (("relu", None), (None, 16)):
    with pytest.raises(UserError, match="for one activation and images of 8 pixels: drop"):
      predict._open(str(tmp_path / "a.stablehlo"), activation, size)


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


def test_the_command_with_a_runs_workdir(
  run_of_photos, image_folder, tmp_path, run_command, capsys
):
  """Uses the class names and preprocessing of the run; images of its size are not resized."""
  told = pretrained.read(run_of_photos).preprocessing
  assert told == Preprocessing(40, (0.5,) * 3, (0.25,) * 3, 1.0, ("ant", "bee"))
  file = image_folder / "test" / "ant" / "0.jpg"

  good = run_command(predict, f"--init_from={run_of_photos}", "--json", image_folder / "test")
  lines = [json.loads(line) for line in good.splitlines()]
  assert [pathlib.Path(line["file"]).parent.name for line in lines] == ["ant", "ant", "bee", "bee"]
  for line in lines:
    assert {c["name"] for c in line["classes"]} == {"ant", "bee"}
    np.testing.assert_allclose(sum(c["probability"] for c in line["classes"]), 1, rtol=1e-5)

  (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no more")
  with pytest.raises(UserError, match="1 of 2 images could not be read, see above"):
    run_command(predict, f"--init_from={run_of_photos}", tmp_path / "bad.jpg", file)
  out, err = capsys.readouterr()
  assert err.startswith(f"{tmp_path / 'bad.jpg'}: an image of 10 bytes cannot be decoded: ")
  assert err.count("\n") == 1
  assert len(out.splitlines()) == 2 and "ant" in out and "%" in out


def test_mistakes_of_the_command_line_are_one_line(tmp_path):
  command = [sys.executable, "-m", "convmixer_jax.predict"]
  command += [f"--init_from={tmp_path / 'none'}", str(ROOT / "nothing.jpg")]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert (run.returncode, run.stderr) == (1, f"error: {ROOT / 'nothing.jpg'} does not exist\n")


def test_names_of_a_run(configs, tmp_path, caplog):
  config = config_lib.read(configs / "digits.py")
  class_names.write(tmp_path, ["n01443537", "été"])
  assert workdir.preprocessing_of(config, tmp_path).class_names == ("goldfish", "été")
  (tmp_path / "class_names.json").write_text("[")
  with pytest.raises(UserError, match=r"class_names.json is corrupt: .* writes it again"):
    workdir.preprocessing_of(config, tmp_path)
  (tmp_path / "class_names.json").unlink()  # as in older runs
  assert workdir.preprocessing_of(config, tmp_path).class_names == tuple("0123456789")
  config.data.update(dataset="folder", data_dir="/nowhere")
  assert workdir.preprocessing_of(config, tmp_path).class_names is None
  assert "class names are unknown, because the data are missing" in caplog.text
  config.data.dataset = "imagenet2012"
  assert workdir.preprocessing_of(config, tmp_path).class_names[1] == "goldfish"


@pytest.mark.parametrize(
  ("crop", "cache", "fraction"),
  [("none", "none", 1.0), ("random_resized", "none", 0.875), ("random_resized", "device", 1.0)],
)
def test_the_crop_of_a_run_is_that_of_its_evaluation(configs, tmp_path, crop, cache, fraction):
  """Cached images have one size, and are evaluated uncropped."""
  config = config_lib.read(configs / "digits.py")
  config.data.update(crop=crop, cache=cache, eval_crop_fraction=0.875)
  assert workdir.preprocessing_of(config, tmp_path).crop_fraction == fraction
