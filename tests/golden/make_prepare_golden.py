"""Makes prepare.json: what TFDS writes from small archives when it has TensorFlow.

`test_prepare.py` fabricates the same archives and compares what `prepare`
writes without TensorFlow. To make the file anew, from the project's root and
in an environment of its own, as the project itself does without TensorFlow:

  pip install tensorflow tensorflow-datasets array_record importlib_resources pillow
  python tests/golden/make_prepare_golden.py
"""

import base64
from collections.abc import Mapping
import hashlib
import io
import json
import pathlib
import tarfile
import tempfile
from typing import Any

import numpy as np

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/{}"
# Two of the files that TFDS repairs, and the archive of the class they are in.
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"


def cifar_rows(seed: int, labels: int, count: int) -> bytes:
  """Examples in CIFAR's binary layout: noise, smooth images and constant ones in turn."""
  rng = np.random.RandomState(seed)
  rows = rng.randint(0, 256, (count, labels + 3072)).astype(np.uint8)
  rows[:, :labels] %= 10
  rows[1::3, labels:] = np.cumsum(rng.randint(-2, 3, (len(rows[1::3]), 3072)), axis=1) + 128
  rows[2::3, labels:] = rng.randint(0, 256, (len(rows[2::3]), 1))
  return rows.tobytes()


def write_tar(path: pathlib.Path, files: Mapping[str, bytes], mode: str = "w") -> None:
  """Writes files into a tar in the given order."""
  with tarfile.open(path, mode) as tar:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def make_cifar(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Fabricates both archives; returns them by the URL that they stand for."""
  names = [f"name_{i}\n".encode() for i in range(100)]
  batches = {f"data_batch_{i}.bin": cifar_rows(i, 1, 4) for i in range(1, 6)}
  contents = {
    "cifar-10-binary.tar.gz": {
      "cifar-10-batches-bin/batches.meta.txt": b"".join(names[:10]) + b"\n",
      **{f"cifar-10-batches-bin/{name}": rows for name, rows in batches.items()},
      "cifar-10-batches-bin/test_batch.bin": cifar_rows(6, 1, 5),
    },
    "cifar-100-binary.tar.gz": {
      "cifar-100-binary/coarse_label_names.txt": b"".join(names[:20]),
      "cifar-100-binary/fine_label_names.txt": b"".join(names),
      "cifar-100-binary/train.bin": cifar_rows(7, 2, 9),
      "cifar-100-binary/test.bin": cifar_rows(8, 2, 5),
    },
  }
  for name, files in contents.items():
    write_tar(directory / name, files, "w:gz")
  return {CIFAR_URL.format(name): directory / name for name in contents}


def make_imagenet(directory: pathlib.Path, cmyk: bytes, png: bytes) -> None:
  """Fabricates the three tars; only the files to repair have to be images."""
  classes: dict[str, dict[str, bytes]] = {}
  for wnid in ("n01440764", "n01739381", "n02105855"):
    classes[wnid] = {name: name.encode() * 50 for name in (f"{wnid}_{i}.JPEG" for i in (18, 3, 7))}
  classes["n01739381"][CMYK] = cmyk
  classes["n02105855"][PNG] = png
  train = {}
  for wnid, files in classes.items():
    write_tar(directory / "class.tar", files)
    train[f"{wnid}.tar"] = (directory / "class.tar").read_bytes()
  (directory / "class.tar").unlink()
  write_tar(directory / "ILSVRC2012_img_train.tar", train)
  # The validation tar is not in the order of its names.
  for split, numbers in (("val", (3, 1, 4, 2)), ("test", (2, 1))):
    images = [f"ILSVRC2012_{split}_{i:08}.JPEG" for i in numbers]
    tar = directory / f"ILSVRC2012_img_{split}.tar"
    write_tar(tar, {name: name.encode() * 50 for name in images})


def register(builder_cls: Any, archives: Mapping[str, pathlib.Path]) -> None:
  """Tells a builder the checksums of the fabricated archives in place of the real ones."""
  from tensorflow_datasets.core.download import checksums

  infos = {url: checksums.compute_url_info(path) for url, path in archives.items()}
  builder_cls.url_infos.update(infos)


def summarize(directory: pathlib.Path) -> dict[str, Any]:
  """What has to agree: all that a reader gets, but for how images are compressed.

  Records are compared as digests, for which a PNG counts by its pixels, and the
  two repaired files not at all.
  """
  from array_record.python import array_record_module
  import PIL.Image
  from tensorflow_datasets.proto import tf_example_pb2

  info = json.loads((directory / "dataset_info.json").read_text())
  for split in info["splits"]:
    del split["numBytes"]
  kept = ("name", "version", "moduleName", "fileFormat", "splits", "supervisedKeys")
  summary: dict[str, Any] = {"info": {key: info[key] for key in kept}}
  summary["features"] = json.loads((directory / "features.json").read_text())
  for path in sorted(directory.glob("*.txt")):
    summary[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
  for path in sorted(directory.glob("*.array_record*")):
    summary[path.name] = []
    reader = array_record_module.ArrayRecordReader(str(path))
    for record in reader.read_all():
      example = tf_example_pb2.Example.FromString(record)
      feature = example.features.feature
      image = feature["image"].bytes_list
      if image.value[0].startswith(b"\x89PNG"):
        image.value[0] = PIL.Image.open(io.BytesIO(image.value[0])).tobytes()
      # Looking a missing name up would add it to the map.
      names = feature["file_name"].bytes_list.value if "file_name" in feature else []
      if any(name.decode() in (CMYK, PNG) for name in names):
        image.value[0] = b""
      digest = hashlib.sha256(example.SerializeToString(deterministic=True)).hexdigest()
      summary[path.name].append(digest[:32])
    reader.close()
  return summary


def repaired_images(builder: Any) -> dict[str, bytes]:
  """The JPEG files that TFDS made of the CMYK and the PNG one."""
  import tensorflow_datasets as tfds

  decoders = {"image": tfds.decode.SkipDecoding()}
  records = builder.as_data_source("train", decoders=decoders)
  names = {CMYK: "cmyk", PNG: "png"}
  by_name = {record["file_name"].decode(): record["image"] for record in records}
  return {key: by_name[name] for name, key in names.items()}


def images_to_repair() -> dict[str, bytes]:
  """A small smooth JPEG with inks for colours, and a PNG with an alpha channel."""
  import PIL.Image

  pixels = np.random.RandomState(0).randint(0, 256, (3, 4, 4)).astype(np.uint8)
  files = {}
  for key, mode, file_format in (("cmyk", "CMYK", "JPEG"), ("png", "RGBA", "PNG")):
    image = PIL.Image.frombytes(mode, (4, 3), pixels.tobytes()).resize((20, 12))
    file = io.BytesIO()
    image.save(file, file_format)
    files[key] = file.getvalue()
  return files


def main() -> None:
  """Builds the datasets with TFDS's own builders and writes down what they made."""
  import tensorflow_datasets as tfds

  inputs = images_to_repair()
  golden: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(temporary)
    archives = make_cifar(directory)
    make_imagenet(directory, **inputs)
    for name in ("cifar10", "cifar100", "imagenet2012"):
      builder = tfds.builder(name, data_dir=directory / "data")
      register(type(builder), archives)
      config = tfds.download.DownloadConfig(manual_dir=directory)
      builder.download_and_prepare(file_format="array_record", download_config=config)
      golden[name] = summarize(builder.data_path)
    outputs = repaired_images(builder)
  golden["repair"] = {
    key: [base64.b64encode(image).decode() for image in (inputs[key], outputs[key])]
    for key in inputs
  }
  path = pathlib.Path(__file__).with_name("prepare.json")
  path.write_text(json.dumps(golden, indent=1) + "\n")
  print(f"wrote {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
