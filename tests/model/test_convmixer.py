from functools import partial
import pathlib

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from convmixer_jax import ConvMixer
from convmixer_jax.model.scan import REMATS
from convmixer_jax.parallel import sharding
from tests.depthwise.test_depthwise import needs_compiler
from tests.plain_convmixer import PlainConvMixer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# Models with other implementations than the default one: slow tests, each beside a quick one.
DEPTHWISE = [None, pytest.param("pallas", marks=pytest.mark.slow)]
IMPLEMENTATIONS = [
  None,
  pytest.param("native", marks=[needs_compiler, pytest.mark.slow]),
  *(pytest.param(name, marks=pytest.mark.slow) for name in ("taps", "xla", "banded", "pallas")),
]
SLOW_BFLOAT16 = pytest.param("bfloat16", marks=pytest.mark.slow)

MODELS = {
  "gelu_odd": ConvMixer(12, 2, 5, 2, 7),
  "relu_odd": ConvMixer(12, 2, 3, 2, 7, "relu"),
  "gelu_even": ConvMixer(12, 2, 4, 1, 7),
}


def cross_entropy(logits, label):
  return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def load(name):
  """The image, label and outputs, and the trees "before", "after", "gradient"."""
  arrays = dict(np.load(GOLDEN / f"logits_{name}.npz"))
  tree = traverse_util.unflatten_dict({tuple(key.split("/")): v for key, v in arrays.items()})
  return tree


def assert_trees_close(ours, theirs, tolerance):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  ):
    np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
    )


@pytest.mark.parametrize("depthwise", DEPTHWISE)
@pytest.mark.parametrize("name", MODELS)
def test_evaluation_logits_are_pytorchs(name, depthwise):
  golden = load(name)
  logits = MODELS[name].clone(depthwise=depthwise).apply(golden["before"], golden["image"])
  np.testing.assert_allclose(logits, golden["eval_logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depthwise", DEPTHWISE)
@pytest.mark.parametrize("name", MODELS)
def test_training_logits_statistics_and_gradients_are_pytorchs(name, depthwise):
  golden = load(name)

  def loss_fn(params):
    variables = {**golden["before"], "params": params}
    logits, updated = (
      MODELS[name]
      .clone(depthwise=depthwise)
      .apply(variables, golden["image"], train=True, mutable=["batch_stats"])
    )
    return cross_entropy(logits, golden["label"]), (logits, updated)

  gradient, (logits, updated) = jax.grad(loss_fn, has_aux=True)(golden["before"]["params"])
  np.testing.assert_allclose(logits, golden["train_logits"], rtol=1e-5, atol=1e-5)
  assert_trees_close(updated, golden["after"], 1e-6)  # includes the unbiased variance
  assert_trees_close({"params": gradient}, golden["gradient"], 2e-5)


# dim, depth, kernel, patch, classes and trainable parameters, counted in PyTorch and timm.
COUNTS = [
  (1536, 20, 9, 7, 1000, 51_625_960),
  (768, 32, 7, 7, 1000, 21_110_248),
  (1024, 20, 9, 14, 1000, 24_383_464),
  (256, 8, 5, 2, 10, 594_186),
  (256, 8, 9, 1, 10, 706_570),
  (128, 4, 8, 1, 10, 103_434),
  (128, 8, 8, 1, 10, 204_810),
  (128, 12, 8, 1, 10, 306_186),
  (128, 8, 7, 2, 10, 190_602),
  (256, 4, 8, 1, 10, 337_930),
  (256, 8, 8, 1, 10, 671_754),
  (256, 12, 8, 1, 10, 1_005_578),
  (256, 8, 7, 2, 10, 643_338),
  (256, 16, 8, 1, 10, 1_339_402),
  (512, 12, 8, 7, 1000, 4_165_608),
  (512, 16, 8, 7, 1000, 5_357_544),
  (1024, 12, 8, 7, 1000, 14_621_672),
  (1024, 16, 9, 7, 1000, 19_381_224),
  (1536, 20, 3, 7, 1000, 49_414_120),
  (1536, 20, 9, 14, 1000, 52_303_336),
  (1536, 24, 9, 14, 1000, 62_275_048),
]


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: "-".join(map(str, row[:5])))
def test_parameter_and_statistics_counts(row):
  *sizes, count = row
  dim, depth, _, patch, _ = sizes
  image = jax.ShapeDtypeStruct((1, 2 * patch, 2 * patch, 3), jnp.float32)
  variables = jax.eval_shape(ConvMixer(*sizes).init, jax.random.key(0), image)

  def total(tree):
    return sum(x.size for x in jax.tree.leaves(tree))

  assert total(variables["params"]) == count
  assert total(variables["batch_stats"]) == 2 * dim * (2 * depth + 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_features_keep_the_map_and_the_type(dtype):
  model = ConvMixer(8, 1, 3, 2, dtype=dtype)
  image = jnp.ones((2, 6, 10, 1))
  variables = model.init(jax.random.key(0), image)
  features = model.apply(variables, image, method="features")
  assert features.shape == (2, 3, 5, 8)
  assert features.dtype == dtype
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
  assert model.apply(variables, image).dtype == jnp.float32


def test_bfloat16_is_close_to_float32():
  golden = load("gelu_odd")
  model = MODELS["gelu_odd"].clone(dtype=jnp.bfloat16)
  logits = model.apply(golden["before"], golden["image"])
  error = np.abs(logits - golden["eval_logits"]).max() / np.abs(golden["eval_logits"]).max()
  assert 1e-5 < error < 0.05


@pytest.mark.parametrize("depthwise", DEPTHWISE)
@pytest.mark.parametrize("sizes", [(8, 2, 5, 2, 6, "gelu"), (9, 2, 4, 1, 6, "relu")], ids=str)
def test_the_fused_path_gives_the_plain_modules_numbers(sizes, depthwise):
  image = jax.random.normal(jax.random.key(1), (4, 8, 6, 3))
  label = jnp.array([0, 5, 3, 1])
  ours, plain = ConvMixer(*sizes, depthwise=depthwise), PlainConvMixer(*sizes)
  variables = ours.init(jax.random.key(0), image)

  def value_and_gradient(model):
    def loss_fn(params):
      logits, updated = model.apply(
        {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
      )
      return cross_entropy(logits, label), (logits, updated)

    return jax.jit(jax.grad(loss_fn, has_aux=True))(variables["params"])

  with jax.numpy_rank_promotion("allow"):  # Flax's Dense adds its bias this way
    gradient, (logits, updated) = value_and_gradient(plain)
  our_gradient, (our_logits, our_updated) = value_and_gradient(ours)
  np.testing.assert_allclose(our_logits, logits, rtol=1e-5, atol=1e-5)
  assert_trees_close(our_gradient, gradient, 2e-5)
  count = 4 * 8 * 6 // sizes[3] ** 2
  for name in ("stem_norm", "blocks_1"):
    means, their_means = (
      jax.tree.leaves(u["batch_stats"][name])[0] for u in (our_updated, updated)
    )
    np.testing.assert_allclose(means, their_means, rtol=1e-4, atol=1e-6)
  ours_var, their_var = (u["batch_stats"]["stem_norm"]["var"] for u in (our_updated, updated))
  np.testing.assert_allclose((ours_var - 0.9) * (count - 1), (their_var - 0.9) * count, rtol=1e-3)


@pytest.mark.parametrize("depthwise", DEPTHWISE)
def test_groups_are_normalised_each_by_itself(depthwise):
  """Two groups of 4 images equal two batches of 4; running statistics are averaged."""
  image = jax.random.normal(jax.random.key(1), (8, 8, 6, 3))
  whole = ConvMixer(8, 1, 3, 2, 5, depthwise=depthwise)
  variables = whole.init(jax.random.key(0), image)

  def logits_and_statistics(model, image):
    return model.apply(variables, image, train=True, mutable=["batch_stats"])

  logits, updated = logits_and_statistics(whole.clone(group_size=4), image)
  parts = [logits_and_statistics(whole, half) for half in (image[:4], image[4:])]
  np.testing.assert_allclose(logits, jnp.concatenate([p[0] for p in parts]), rtol=1e-5, atol=1e-6)
  averaged = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
  assert_trees_close(updated, averaged, 1e-6)
  of_all, _ = logits_and_statistics(whole, image)
  assert np.abs(of_all - logits).max() > 1e-2
  with pytest.raises(ValueError, match="8 images cannot be split into groups of group_size=3"):
    logits_and_statistics(whole.clone(group_size=3), image)


def test_groups_sum_the_gradients_of_their_images():
  image = jax.random.normal(jax.random.key(1), (8, 4, 4, 3))
  model = ConvMixer(8, 1, 3, 1, 5)
  variables = model.init(jax.random.key(0), image)

  def gradient(model, image):
    def loss_fn(params):
      logits, _ = model.apply(
        {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
      )
      return (logits**2).sum()

    return jax.jit(jax.grad(loss_fn))(variables["params"])

  parts = [gradient(model, half) for half in (image[:4], image[4:])]
  assert_trees_close(
    gradient(model.clone(group_size=4), image), jax.tree.map(jnp.add, *parts), 1e-4
  )


def test_momentum_and_epsilon_of_the_norms():
  image = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
  model = ConvMixer(8, 0, patch_size=1, num_classes=0, norm_momentum=0.99, norm_epsilon=10.0)
  variables = model.init(jax.random.key(0), image)
  features, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
  stem = variables["params"]["stem"]
  activated = jax.nn.gelu(
    image @ stem["kernel"][0, 0] + stem["bias"][None, None, None], approximate=False
  )
  mean, var = activated.mean((0, 1, 2)), activated.var((0, 1, 2))
  stats = updated["batch_stats"]["stem_norm"]
  np.testing.assert_allclose(stats["mean"], 0.01 * mean, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * var * 64 / 63, rtol=1e-5)
  expected = (activated - mean[None, None, None]) / jnp.sqrt(var + 10)[None, None, None]
  np.testing.assert_allclose(features, expected.mean((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depthwise", [None, "taps"])  # channels last and first
def test_no_classes_gives_the_pooled_features(depthwise):
  golden = load("gelu_odd")
  model = MODELS["gelu_odd"].clone(num_classes=0, depthwise=depthwise)
  pooled = model.apply(golden["before"], golden["image"])
  head = golden["before"]["params"]["head"]
  np.testing.assert_allclose(
    pooled @ head["kernel"] + head["bias"][None], golden["eval_logits"], rtol=1e-5, atol=1e-5
  )


def test_initialisation_is_pytorchs():
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases."""
  params = ConvMixer(64, 1, 9, 7, 10).init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
  fan_ins = {"stem": 3 * 49, "head": 64}
  fan_ins |= {"blocks_0/depthwise": 81, "blocks_0/pointwise": 64}
  flat = traverse_util.flatten_dict(params, sep="/")
  for name, fan_in in fan_ins.items():
    for part in ("kernel", "bias"):
      values = np.asarray(flat[f"{name}/{part}"]) * np.sqrt(fan_in)
      assert 0.7 < np.abs(values).max() <= 1, (name, part)
      if part == "kernel":
        np.testing.assert_allclose(values.std(), 1 / np.sqrt(3), rtol=0.05)


def test_glorots_initialisation_is_kerass():
  """Limit sqrt(6 / (receptive field * (inputs + outputs))), biases 0."""
  model = ConvMixer(64, 1, 9, 7, 10, initializer="glorot")
  params = model.init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
  flat = traverse_util.flatten_dict(params, sep="/")
  fans = {"stem": 49 * (3 + 64), "head": 64 + 10}
  fans |= {"blocks_0/depthwise": 81 * (1 + 64), "blocks_0/pointwise": 128}
  for name, fan in fans.items():
    values = np.abs(flat[f"{name}/kernel"]) / np.sqrt(6 / fan)
    assert 0.97 < values.max() <= 1, name
    assert not flat[f"{name}/bias"].any(), name


def test_errors_name_what_is_wrong():
  model = ConvMixer(8, 1, 3, patch_size=4)
  with pytest.raises(ValueError, match=r"30x32 pixels .* multiples of patch_size=4"):
    model.init(jax.random.key(0), jnp.zeros((1, 30, 32, 3)))
  with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]"):
    model.init(jax.random.key(0), jnp.zeros((32, 32, 3)))
  with pytest.raises(ValueError, match="'swish'; allowed: gelu, gelu_tanh, relu"):
    ConvMixer(8, 1, activation="swish").init(jax.random.key(0), jnp.zeros((1, 14, 14, 3)))


@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize("scan", [False, True])
def test_remat_and_scan_change_nothing_but_the_program(scan, remat):
  golden, plain = load("gelu_odd"), MODELS["gelu_odd"]
  model = plain.clone(scan=scan, remat=remat)
  assert_trees_close(
    model.init(jax.random.key(0), golden["image"]),
    plain.init(jax.random.key(0), golden["image"]),
    0,
  )

  def results(model):
    def loss_fn(params):
      variables = {**golden["before"], "params": params}
      logits, updated = model.apply(variables, golden["image"], train=True, mutable=["batch_stats"])
      return cross_entropy(logits, golden["label"]), updated

    evaluated = model.apply(golden["before"], golden["image"])
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(golden["before"]["params"]), evaluated

  assert_trees_close(results(model), results(plain), 2e-6)


def test_a_program_with_scan_does_not_grow_with_the_depth():
  def size(depth, scan):
    model = ConvMixer(8, depth, 3, 2, 5, scan=scan)
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    return step.lower(variables, image).as_text().count("dot_general")

  assert size(2, True) == size(9, True)
  assert size(9, False) > 2 * size(2, False)


@pytest.mark.parametrize("dtype", ["float32", SLOW_BFLOAT16])
def test_remat_keeps_two_maps_of_a_block_or_one(dtype):
  """The memory kept between the passes, in multiples of a feature map."""

  def kept(remat, scan=False):
    model = ConvMixer(8, 4, 3, 2, 5, dtype=dtype, remat=remat, scan=scan)
    image = np.zeros((2, 64, 64, 3), np.float32)
    variables = model.init(jax.random.key(0), image)

    def logits(params):
      return model.apply(
        {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
      )[0]

    _, pullback = jax.vjp(logits, variables["params"])
    one = 2 * 32 * 32 * 8 * jnp.dtype(dtype).itemsize
    return sum(x.nbytes for x in jax.tree.leaves(pullback)) / one

  assert kept("blocks") < 4 + 5
  assert 4 * 2 < kept("activations") < 4 * 2 + 5
  assert 4 * 3 < kept("activations", scan=True) < 4 * 3 + 5
  assert kept("none") > 4 * 3


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_activations_computed_again_cost_no_convolution_no_product_and_no_communication(devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  image = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
  variables = ConvMixer(8, 2, 3, 2, 5).init(jax.random.key(0), image)
  image = jax.device_put(image, sharding.batch_sharding(mesh))

  def program_and_gradients(remat):
    model = ConvMixer(8, 2, 3, 2, 5, remat=remat, mesh=mesh)

    @jax.jit
    def gradients(params):
      def loss(params):
        logits, _ = model.apply(
          {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

      return jax.grad(loss)(params)

    traced = gradients.trace(variables["params"])
    compiled = traced.lower().compile()
    names = ("depthwise_forward", "depthwise_backward", "dot_general[")
    counts = [str(traced.jaxpr).count(name) for name in names]
    return [*counts, compiled.as_text().count(" all-reduce(")], compiled(variables["params"])

  (counts, got), (want_counts, want) = map(program_and_gradients, ("activations", "none"))
  assert counts == want_counts
  assert counts[:2] == [2, 2]
  assert_trees_close(got, want, 0)


@pytest.mark.slow
def test_remat_in_bfloat16_has_the_gradients_of_the_plain_model():
  golden = load("gelu_odd")

  def gradient(remat):
    model = MODELS["gelu_odd"].clone(dtype="bfloat16", remat=remat)

    def loss_fn(params):
      variables = {**golden["before"], "params": params}
      logits, _ = model.apply(variables, golden["image"], train=True, mutable=["batch_stats"])
      return cross_entropy(logits, golden["label"])

    return jax.jit(jax.grad(loss_fn))(golden["before"]["params"])

  assert_trees_close(gradient("blocks"), gradient("none"), 5e-3)
  assert_trees_close(gradient("activations"), gradient("none"), 5e-3)


@pytest.mark.parametrize("depthwise", DEPTHWISE)
def test_gradients_of_products_in_bfloat16_are_not_rounded_to_it(depthwise):
  """Devices must not sum kernel gradients in bfloat16, with its eight bits."""
  golden = load("gelu_odd")
  model = MODELS["gelu_odd"].clone(dtype="bfloat16", depthwise=depthwise)

  def loss_fn(params):
    variables = {**golden["before"], "params": params}
    logits, _ = model.apply(variables, golden["image"], train=True, mutable=["batch_stats"])
    return cross_entropy(logits, golden["label"])

  gradient = jax.grad(loss_fn)(golden["before"]["params"])
  for layer in (gradient["stem"], gradient["blocks_1"]["pointwise"]):
    kernel = layer["kernel"]
    assert kernel.dtype == jnp.float32
    assert (kernel != kernel.astype(jnp.bfloat16)).mean() > 0.9


def small_case():
  """A model, its variables with non-initial running statistics, and 16 images."""
  model = ConvMixer(8, 1, 3, 2, 5)
  image = jax.random.normal(jax.random.key(1), (16, 8, 6, 3))
  variables = model.init(jax.random.key(0), image)
  _, updated = model.apply(variables, 2 * image + 1, train=True, mutable=["batch_stats"])
  return model, {**variables, **updated}, image


def evaluate_and_train(model, variables, params, image):
  """A scalar computed in both modes, and the updated statistics."""
  variables = {**variables, "params": params}
  logits, updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
  return (logits**2).sum() + (model.apply(variables, image) ** 2).sum(), updated


def loss_of(model, variables, image, params):
  return evaluate_and_train(model, variables, params, image)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  "settings", [{}, pytest.param({"remat": "blocks"}, marks=pytest.mark.slow)], ids=str
)
def test_xla_has_derivatives_of_any_mode_and_order(settings):
  model, variables, image = small_case()
  model, params = model.clone(depthwise="xla", **settings), variables["params"]
  tangent = jax.tree.map(jnp.cos, params)
  loss = partial(loss_of, model, variables, image[:4])
  fast_loss = partial(loss_of, model.clone(depthwise=None), variables, image[:4])

  def along(tree):
    return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (tree, tangent)), strict=True))

  @jax.jit
  def results(params):
    gradient, forward_over_reverse = jax.jvp(jax.grad(loss), (params,), (tangent,))
    reverse_over_reverse = jax.grad(lambda params: along(jax.grad(loss)(params)))(params)
    slope = jax.jvp(loss, (params,), (tangent,))[1]
    linear = jax.linearize(loss, params)[1](tangent)
    return gradient, slope, linear, forward_over_reverse, reverse_over_reverse

  gradient, slope, linear, *second = results(params)
  assert_trees_close(gradient, jax.jit(jax.grad(fast_loss))(params), 1e-3)
  np.testing.assert_allclose([slope, linear], along(gradient), rtol=1e-4)
  assert_trees_close(*second, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_gradients(implementation):
  model, variables, image = small_case()

  def penalty(implementation, image):
    """The squared gradient norm, as in a gradient penalty."""
    loss = partial(loss_of, model.clone(depthwise=implementation), variables, image)
    return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(variables["params"])))

  got, want = (jax.jit(jax.grad(partial(penalty, i)))(image[:4]) for i in (implementation, "xla"))
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_forward_mode_without_xla_says_what_to_do():
  model, variables, image = small_case()
  loss = partial(loss_of, model, variables, image)
  with pytest.raises(TypeError, match=r'forward-mode .* build the model with depthwise="xla"'):
    jax.jvp(loss, (variables["params"],), (variables["params"],))
  probe = partial(loss_of, model.clone(depth=0), variables, image)  # without depthwise convolutions
  with pytest.raises(TypeError, match=r'forward-mode .* build the model with depthwise="xla"'):
    jax.linearize(probe, variables["params"])[1](variables["params"])


@pytest.mark.parametrize("axis_type", [pytest.param("Auto", marks=pytest.mark.slow), "Explicit"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_under_shard_map_with_replicated_parameters(implementation, axis_type):
  model, variables, image = small_case()
  model = model.clone(
    depthwise=implementation, remat="blocks" if implementation == "taps" else "activations"
  )
  params = variables["params"]
  axis_types = (jax.sharding.AxisType[axis_type],) * 2
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=axis_types)

  def loss(params, image):
    return evaluate_and_train(model, variables, params, image)[0]

  def gradient(params, image):
    return jax.grad(lambda params: jax.lax.psum(loss(params, image), "data"))(params)

  data, copy = (jax.NamedSharding(mesh, spec) for spec in (P("data"), P()))
  sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
  got = jax.jit(sharded)(jax.device_put(params, copy), jax.device_put(image, data))
  # Statistics are per shard.
  shards = image.reshape(4, 4, *image.shape[1:])
  parts = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, shards)
  want = jax.tree.map(lambda x: x.sum(0), parts)
  assert_trees_close(got, want, 2e-3)


@pytest.mark.parametrize(
  "settings",
  [
    {},
    pytest.param({"depthwise": "xla"}, marks=pytest.mark.slow),
    pytest.param({"depthwise": "pallas", "group_size": 2, "scan": True}, marks=pytest.mark.slow),
    pytest.param({"group_size": 8, "remat": "activations"}, marks=pytest.mark.slow),
    pytest.param(
      {"group_size": 8, "remat": "blocks"}, marks=pytest.mark.slow
    ),  # a group spans several devices
  ],
  ids=str,
)
def test_images_on_a_mesh_of_explicit_axes(settings):
  model, variables, image = small_case()
  model = model.clone(**settings)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
  data, copy = (jax.NamedSharding(mesh, spec) for spec in (P("data"), P()))

  @jax.jit
  def results(variables, image):
    loss = partial(evaluate_and_train, model, variables)
    return model.apply(variables, image), jax.value_and_grad(loss, (0, 1), has_aux=True)(
      variables["params"], image
    )

  got = results(jax.device_put(variables, copy), jax.device_put(image, data))
  assert got[0].sharding.spec == P("data", None)
  assert_trees_close(got, results(variables, image), 2e-3)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"dim": 0}, "dim is 0; allowed: integers from 1"),
    ({"patch_size": 0}, "patch_size is 0; allowed: integers from 1"),
    ({"kernel_size": 3.0}, "kernel_size is 3.0; allowed: integers from 1"),
    ({"depth": -1}, "depth is -1; allowed: integers from 0"),
    ({"depth": True}, "depth is True; allowed: integers from 0"),
    ({"num_classes": -1}, "num_classes is -1; allowed: integers from 0"),
    ({"group_size": 0}, "group_size is 0; allowed: None, integers from 1"),
    ({"dropout": 1}, "dropout is 1; allowed: numbers from 0 to below 1"),
    ({"norm_momentum": float("nan")}, "norm_momentum is nan; allowed"),
    ({"norm_epsilon": 0}, "norm_epsilon is 0; allowed: numbers above 0"),
    ({"dtype": "float16"}, "dtype is 'float16'; allowed: None, float32, bfloat16"),
    ({"dtype": jnp.float64}, "dtype is .*float64.*; allowed: None, float32, bfloat16"),
    ({"remat": True}, "remat is True; allowed: none, activations, blocks"),
    ({"depthwise": "fast"}, "depthwise is 'fast'; allowed: None, taps, xla, native, banded"),
    ({"dtype": None, "param_dtype": jnp.float16}, "dtype is None, which for float16 images and"),
  ],
  ids=str,
)
def test_attributes_that_are_not_allowed(settings, words):
  model = ConvMixer(8, 1, 3, 2).clone(**settings)
  with pytest.raises(ValueError, match=words):
    model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3), jnp.float16))


def test_numpy_integers_and_dtypes_are_allowed():
  settings = {"dtype": np.dtype("float32"), "norm_epsilon": np.float32(1e-5)}
  model = ConvMixer(np.int64(8), np.int32(1), 3, 2, **settings)
  model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize("image_dtype", ["uint8", "bfloat16", "float32"])
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float32"])
def test_no_dtype_is_what_images_and_parameters_promote_to(param_dtype, image_dtype):
  image = jnp.ones((2, 4, 4, 3), image_dtype)
  ours = ConvMixer(8, 1, 3, 2, dtype=None, param_dtype=param_dtype)
  theirs = nn.Conv(8, (2, 2), param_dtype=param_dtype)

  def features(image):
    return ours.init_with_output(jax.random.key(0), image, method="features")[0]

  want, _ = jax.eval_shape(theirs.init_with_output, jax.random.key(0), image)
  assert jax.eval_shape(features, image).dtype == want.dtype


@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_empty_batch(implementation, remat):
  model, variables, image = small_case()
  model = model.clone(depthwise=implementation, remat=remat)
  none = image[:0]
  assert jax.jit(model.apply)(variables, none).shape == model.apply(variables, none).shape == (0, 5)
  assert model.apply(variables, none, method="features").shape == (0, 4, 3, 8)
  gradient = jax.jit(
    jax.grad(lambda params: model.apply({**variables, "params": params}, none).sum())
  )(variables["params"])
  assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(gradient))
  with pytest.raises(ValueError, match=r"train=True needs images .* this batch has none"):
    model.apply(variables, none, train=True, mutable=["batch_stats"])
