import io
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError


def test_digits_are_scikit_learns():
  from sklearn.datasets import load_digits

  train, test = open_source("digits", "train"), open_source("digits", "test")
  assert (len(train), len(test), train.channels, len(train.class_names)) == (1437, 360, 1, 10)
  ours = np.concatenate([train.images, test.images])[..., 0].reshape(1797, 64)
  theirs = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
  labels = np.concatenate([train.labels, test.labels])
  ours, theirs = np.c_[ours, labels], np.c_[theirs, load_digits().target]
  np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_folder_gives_files_and_labels_in_order(image_folder):
  source = open_source("folder", "train", str(image_folder))
  assert list(source.class_names) == ["ant", "bee"]
  assert [label for _, label in source.read(range(len(source)))] == [0] * 5 + [1] * 5
  ((encoded, label),) = source.read([7])
  assert label == 1
  assert encoded == sorted((image_folder / "train" / "bee").iterdir())[2].read_bytes()


def test_tfds_gives_the_prepared_files(tfds_dir, image_folder):
  source = open_source("ants_and_bees", "train", str(tfds_dir))
  assert list(source.class_names) == ["ant", "bee"]
  files = {file.read_bytes(): file.parent.name for file in image_folder.glob("train/*/*")}
  assert len(source) == len(files) == 10
  for encoded, label in source.read(range(10)):
    assert source.class_names[label] == files.pop(encoded)


def test_tfds_slices(tfds_dir):
  assert len(open_source("ants_and_bees", "train[:30%]", str(tfds_dir))) == 3


@pytest.mark.parametrize(
  ("dataset", "split", "message"),
  [
    ("digits", "validation", r'split of config.data is "validation"; digits has train and test'),
    ("folder", "dev", r"{dir}/none is not a directory"),
    ("cifra10", "train", r'config.data.dataset is "cifra10": not .* prepared in'),
    ("ants_and_bees", "validation", r'split of config.data is "validation"; .* has test, train'),
    ("ants_and_bees", "train[:x]", r'split of config.data is "train\[:x\]"'),
    (
      "cifar10",
      "train",
      r"cifar10/3.0.2 .* not prepared: looked in {dir}/cifar10/3.0.2.*"
      r"`python -m convmixer_jax.prepare cifar10 --data_dir={dir}`",
    ),
    (
      "imagenet2012",
      "train",
      r"`python -m convmixer_jax.prepare imagenet2012 --data_dir={dir} --manual_dir=DIR`.*"
      r"ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
    ),
  ],
)
def test_what_is_missing_is_named_with_what_to_do(tfds_dir, dataset, split, message):
  with pytest.raises(UserError, match=message.format(dir=tfds_dir)):
    open_source(dataset, split, str(tfds_dir / "none" if dataset == "folder" else tfds_dir))


def test_no_directory_for_folder():
  with pytest.raises(UserError, match=r"set --config\.data\.data_dir=DIR"):
    open_source("folder", "train")


def test_a_split_that_a_folder_does_not_have(image_folder):
  with pytest.raises(
    UserError, match=r'"dev", but .* it has test, train\. .*eval_split=validation'
  ):
    open_source("folder", "dev", str(image_folder))


def make_folder(root, **counts):
  """Creates `root/NAME/0.png` and so on, `counts[NAME]` files each; `__` in NAME means `/`."""
  for name, count in counts.items():
    directory = root / name.replace("__", "/")
    directory.mkdir(parents=True)
    for i in range(count):
      PIL.Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(directory / f"{i}.png")
  return str(root)


def files(root, split):
  """The files of a split, by class."""
  source = open_source("folder", split, root)
  found = {name: set() for name in source.class_names}
  for i, (_, label) in enumerate(source.read(range(len(source)))):
    found[source.class_names[label]].add(source.describe(i))
  return found


@pytest.mark.parametrize("below", ["", "train__"])
def test_a_fifth_is_held_out_where_there_is_nothing_to_evaluate_on(tmp_path, below):
  sizes = {"a": 1, "b": 2, "c": 9, "d": 10, "e": 51}
  root = make_folder(tmp_path, **{below + name: count for name, count in sizes.items()})
  (tmp_path / below.replace("__", "/") / "empty").mkdir()
  train, held_out = files(root, "train"), files(root, "validation")
  assert list(train) == list(held_out) == ["a", "b", "c", "d", "e"]
  for name, count in sizes.items():
    assert not train[name] & held_out[name]
    assert len(train[name]) + len(held_out[name]) == count
  assert [len(held_out[name]) for name in sizes] == [0, 1, 1, 2, 10]
  assert held_out["c"] != {str(tmp_path / below.replace("__", "/") / "c" / "0.png")}
  assert files(root, "validation") == held_out  # the same every time


def test_which_images_are_held_out_does_not_depend_on_the_place(tmp_path):
  roots = [make_folder(tmp_path / name, a=20, b=20) for name in ("here", "there")]
  first, second = (files(root, "validation") for root in roots)
  assert second == {name: {f.replace("here", "there") for f in x} for name, x in first.items()}


@pytest.mark.parametrize("name", ["validation", "val", "valid", "test"])
def test_validation_is_the_directory_that_there_is(tmp_path, name):
  root = make_folder(tmp_path, train__a=5, train__b=5, **{f"{name}__a": 2, f"{name}__b": 3})
  assert [len(x) for x in files(root, "train").values()] == [5, 5]
  assert [len(x) for x in files(root, "validation").values()] == [2, 3]
  assert files(root, name) == files(root, "validation")


def test_a_split_of_another_name_is_all_of_its_directory(tmp_path):
  root = make_folder(tmp_path, train__a=5, dev__a=5)
  assert [len(x) for s in ("train", "dev") for x in files(root, s).values()] == [5, 5]
  with pytest.raises(UserError, match="it has dev, train"):
    files(root, "validation")


def test_hidden_files_are_no_images(tmp_path):
  root = make_folder(tmp_path, train__a=2, test__a=1)
  for hidden in ("train/a/._0.png", "train/a/.cache/0.png"):
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_bytes(b"no image")
  assert len(open_source("folder", "train", root)) == 2


def test_tfds_data_dir_is_read_without_tensorflow(tfds_dir):
  code = (
    "import sys; from convmixer_jax.data.datasets import open_source;"
    "print(len(open_source('ants_and_bees', 'test')), 'tensorflow' in sys.modules)"
  )
  environment = {"TFDS_DATA_DIR": str(tfds_dir), "PATH": "/usr/bin:/bin"}
  result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
  assert result.stdout.split() == [b"4", b"False"], result.stderr


def test_png_and_grey_images_are_read_as_they_are(tmp_path):
  (tmp_path / "train" / "a").mkdir(parents=True)
  PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "train/a/0.png")
  encoded, _ = open_source("folder", "train", str(tmp_path)).read([0])[0]
  assert np.asarray(PIL.Image.open(io.BytesIO(encoded)))[1, 0] == 8
