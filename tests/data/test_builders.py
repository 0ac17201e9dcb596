"""The builders of `prepare`, compared with TFDS and TensorFlow (golden/prepare.json)."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from convmixer_jax import prepare
from convmixer_jax.errors import UserError
from tests.archives import golden, make, write_image


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_writes_what_tfds_with_tensorflow_writes(name, archives, tmp_path):
  prepare.prepare(name, data_dir=str(tmp_path / "data"), manual_dir=str(archives))
  builder = tfds.builder(name, data_dir=tmp_path / "data")
  assert make["summarize"](builder.data_path) == golden[name]


def test_pixels_and_labels_of_cifar10(archives, tmp_path):
  prepare.prepare("cifar10", data_dir=str(tmp_path / "data"), manual_dir=str(archives))
  records = tfds.builder("cifar10", data_dir=tmp_path / "data").as_data_source("test")
  rows = np.frombuffer(make["cifar_rows"](6, 1, 5), np.uint8).reshape(5, -1)
  assert len(records) == 5
  for record in records:
    row = rows[int(record["id"].decode().removeprefix("test_"))]
    assert record["label"] == row[0]
    np.testing.assert_array_equal(record["image"][3, 4], row[1:].reshape(3, 32, 32)[:, 3, 4])


def test_repairs_images_as_tfds_does(archives, tmp_path):
  prepare.prepare("imagenet2012", data_dir=str(tmp_path), manual_dir=str(archives))
  repaired = make["repaired_images"](tfds.builder("imagenet2012", data_dir=tmp_path))
  for key, tolerance in (("cmyk", 1.5), ("png", 0.1)):
    ours = PIL.Image.open(io.BytesIO(repaired[key]))
    theirs = PIL.Image.open(io.BytesIO(base64.b64decode(golden["repair"][key][1])))
    assert ours.format == "JPEG" and ours.mode == "RGB"
    difference = np.asarray(ours, int) - np.asarray(theirs, int)
    assert np.abs(difference).mean() < tolerance, key


def test_labels_follow_the_number_where_validation_images_are_missing(archives, tmp_path):
  name = "ILSVRC2012_val_00000004.JPEG"
  make["write_tar"](archives / "ILSVRC2012_img_val.tar", {name: b"only one"})
  prepare.prepare("imagenet2012", data_dir=str(tmp_path / "data"), manual_dir=str(archives))
  builder = tfds.builder("imagenet2012", data_dir=tmp_path / "data")
  decoders = {"image": tfds.decode.SkipDecoding()}
  (record,) = builder.as_data_source("validation", decoders=decoders)
  labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
  assert builder.info.features["label"].int2str(record["label"]) == labels[3]
  assert record["image"] == b"only one"


@pytest.mark.parametrize(
  "files, message",
  [
    ([], "--manual_dir=.*photos has no directories.*SPLIT/CLASS"),
    (["train/1.jpg"], "photos/train has no class directories.*SPLIT/CLASS"),
    (["train/a/1.jpg", "train/b/x.txt"], "train/b has no images.*add some or remove it.*[.]jpg"),
    (["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"], "Only one of .*train and .*val has b"),
    (["my-split/a/1.jpg"], "my-split: rename it"),
    (["all/a/1.jpg"], "all: rename it"),
    (["train/a/x.txt", "train/a/broken.jpg"], "train/a/broken.jpg is not a readable"),
  ],
)
def test_folder_that_is_not_as_it_should_be(files, message, tmp_path):
  (tmp_path / "photos").mkdir()
  for name in files:
    path = tmp_path / "photos" / name
    write_image(path.with_suffix(".jpg"))
    if path.suffix == ".txt":
      path.with_suffix(".jpg").rename(path)
    if path.stem == "broken":
      path.write_text("not an image")
  with pytest.raises(UserError, match=message):
    prepare.prepare(
      "folder", name="mine", data_dir=str(tmp_path), manual_dir=str(tmp_path / "photos")
    )
  assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("kept", [-1, 0, 512, 1023])
def test_imagenet_tar_that_is_cut_off(kept, archives, tmp_path):
  tar = archives / "ILSVRC2012_img_val.tar"
  content = tar.read_bytes().rstrip(b"\0")
  tar.write_bytes((content + bytes(1024))[: len(content) + kept])
  with pytest.raises(UserError, match=r"ILSVRC2012_img_val.tar is truncated"):
    prepare.prepare("imagenet2012", data_dir=str(tmp_path), manual_dir=str(archives))


def test_imagenet_tar_with_other_files(archives, tmp_path):
  make["write_tar"](archives / "ILSVRC2012_img_val.tar", {"val/cat.JPEG": b"x"})
  with pytest.raises(UserError, match=r"img_val.tar has an unexpected file val/cat.JPEG"):
    prepare.prepare("imagenet2012", data_dir=str(tmp_path), manual_dir=str(archives))
  assert not list((tmp_path / "imagenet2012").iterdir())
