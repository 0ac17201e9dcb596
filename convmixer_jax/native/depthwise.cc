// Depthwise convolution of [batch, height, width, channels] float32 feature maps for CPU, with
// stride 1 and SAME padding, and both its gradients, as XLA FFI targets.
//
// A vector holds adjacent channels at one position. For each image, one vector of channels at a
// time is packed with zero padding into a buffer that stays in the cache, so the inner loops need
// no bounds checks and read contiguous memory. Eight outputs of a row are accumulated in registers,
// as are up to fifteen taps of a kernel gradient. The order of additions depends only on the
// shapes, not on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
constexpr int64_t kTile = 8;     // outputs of a row that are computed at once
constexpr int64_t kItems = 64;   // work items of a kernel gradient: the batch is split if needed
constexpr int64_t kMaxRows = 3;  // taps of a kernel gradient that are computed at once
constexpr int64_t kMaxColumns = 5;

// GCC and Clang vector extensions: arithmetic types, so no processor-specific intrinsics.
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

struct Shape {
  int64_t problems, batch, height, width, channels, rows, columns;
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t image() const { return height * width * channels; }
  int64_t taps() const { return rows * columns; }
  // Length of a packed row: at least one tile, plus padding.
  int64_t pitch() const { return std::max(width, kTile) + columns - 1; }
  int64_t packed() const { return (height + rows - 1) * pitch(); }
};

// The axes before the last four (kernels: three) come from vmap and are the same for all arrays.
Shape ShapeOf(const ffi::Buffer<ffi::F32>& x, const ffi::Buffer<ffi::F32>& kernel) {
  auto map = x.dimensions().end() - 4, taps = kernel.dimensions().end() - 3;
  Shape shape{1, map[0], map[1], map[2], map[3], taps[0], taps[1]};
  for (auto size = x.dimensions().begin(); size != map; ++size) shape.problems *= *size;
  return shape;
}

Vec Load(const float* from, int64_t lanes) {
  if (lanes == kLanes) return *reinterpret_cast<const UnalignedVec*>(from);
  Vec vec = {};
  std::memcpy(&vec, from, sizeof(float) * lanes);
  return vec;
}

void Store(Vec vec, float* to, int64_t lanes) {
  if (lanes == kLanes) {
    *reinterpret_cast<UnalignedVec*>(to) = vec;
  } else {
    std::memcpy(to, &vec, sizeof(float) * lanes);
  }
}

// Copies one vector of channels of an image, with `top` rows and `left` columns of zero padding.
void Pack(const float* map, const Shape& s, int64_t lanes, int64_t top, int64_t left, Vec* packed) {
  const Vec zero = {};
  std::fill(packed, packed + top * s.pitch(), zero);
  for (int64_t h = 0; h < s.height; ++h) {
    Vec* row = packed + (top + h) * s.pitch();
    std::fill(row, row + left, zero);
    for (int64_t w = 0; w < s.width; ++w) {
      row[left + w] = Load(map + (h * s.width + w) * s.channels, lanes);
    }
    std::fill(row + left + s.width, row + s.pitch(), zero);
  }
  std::fill(packed + (top + s.height) * s.pitch(), packed + s.packed(), zero);
}

void PackKernel(const float* kernel, const Shape& s, int64_t lanes, bool mirror, Vec* packed) {
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    packed[mirror ? s.taps() - 1 - tap : tap] = Load(kernel + tap * s.channels, lanes);
  }
}

void Correlate(const Vec* packed, const Vec* kernel, const Shape& s, int64_t lanes, float* y) {
  const int64_t stored = std::min(s.width, kTile);
  for (int64_t h = 0; h < s.height; ++h) {
    for (int64_t tile = 0; tile < s.width; tile += kTile) {
      // The last tile overlaps the previous one instead of crossing the end of the row.
      const int64_t start = std::max<int64_t>(std::min(tile, s.width - kTile), 0);
      Vec sum[kTile] = {};
      for (int64_t i = 0; i < s.rows; ++i) {
        const Vec* x = packed + (h + i) * s.pitch() + start;
        const Vec* weight = kernel + i * s.columns;
        for (int64_t j = 0; j < s.columns; ++j) {
          for (int64_t n = 0; n < kTile; ++n) sum[n] += x[j + n] * weight[j];
        }
      }
      float* out = y + (h * s.width + start) * s.channels;
      for (int64_t n = 0; n < stored; ++n) Store(sum[n], out + n * s.channels, lanes);
    }
  }
}

// Adds the gradients of rows x columns taps to `grad`; x and g are packed, from the first tap on.
template <int rows, int columns>
void AddTaps(const Vec* x, const Vec* g, const Shape& s, Vec* grad) {
  Vec sum[rows][columns] = {};
  for (int64_t h = 0; h < s.height; ++h) {
    const Vec* x_row = x + h * s.pitch();
    const Vec* g_row = g + h * s.pitch();
    for (int64_t w = 0; w < s.width; ++w) {
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) sum[i][j] += x_row[i * s.pitch() + w + j] * g_row[w];
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) grad[i * s.columns + j] += sum[i][j];
  }
}

using AddTapsOf = void (*)(const Vec*, const Vec*, const Shape&, Vec*);
constexpr AddTapsOf kAddTaps[kMaxRows][kMaxColumns] = {
    {AddTaps<1, 1>, AddTaps<1, 2>, AddTaps<1, 3>, AddTaps<1, 4>, AddTaps<1, 5>},
    {AddTaps<2, 1>, AddTaps<2, 2>, AddTaps<2, 3>, AddTaps<2, 4>, AddTaps<2, 5>},
    {AddTaps<3, 1>, AddTaps<3, 2>, AddTaps<3, 3>, AddTaps<3, 4>, AddTaps<3, 5>},
};

// The size of the next part when `rest` is split evenly into as few parts of at most `max` as
// possible.
int64_t Part(int64_t rest, int64_t max) {
  const int64_t parts = (rest + max - 1) / max;
  return (rest + parts - 1) / parts;
}

void AddKernelGrad(const Vec* x, const Vec* g, const Shape& s, Vec* grad) {
  for (int64_t i = 0, rows; i < s.rows; i += rows) {
    rows = Part(s.rows - i, kMaxRows);
    for (int64_t j = 0, columns; j < s.columns; j += columns) {
      columns = Part(s.columns - j, kMaxColumns);
      kAddTaps[rows - 1][columns - 1](x + i * s.pitch() + j, g, s, grad + i * s.columns + j);
    }
  }
}

// Calls work(0) to work(count - 1) on the pool and on this thread. This thread waits only for calls
// that have started, so there is no deadlock if all threads of the pool wait in such loops.
template <typename Work>
void ParallelFor(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t finished = 0;
    std::mutex mutex;
    std::condition_variable all_finished;
  };
  auto state = std::make_shared<State>();
  auto run = [state, count, &work] {
    int64_t finished = 0;
    // A late thread finds no item and must not touch `work`, which no longer exists.
    for (int64_t item; (item = state->next.fetch_add(1)) < count; ++finished) work(item);
    std::lock_guard<std::mutex> lock(state->mutex);
    if (finished && (state->finished += finished) == count) state->all_finished.notify_one();
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t n = 0; n < helpers; ++n) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_finished.wait(lock, [&] { return state->finished == count; });
}

// A thread-local buffer that is reused between calls.
Vec* Scratch(int64_t size) {
  static thread_local std::vector<Vec> scratch;
  if (static_cast<int64_t>(scratch.size()) < size) scratch.resize(size);
  return scratch.data();
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> kernel,
                   ffi::ResultBuffer<ffi::F32> y) {
  const Shape s = ShapeOf(x, kernel);
  ParallelFor(pool, s.problems * s.batch * s.blocks(), [&](int64_t item) {
    const int64_t image = item / s.blocks(), channel = item % s.blocks() * kLanes;
    const int64_t lanes = std::min(kLanes, s.channels - channel);
    const int64_t first = image * s.image() + channel;
    Vec* weights = Scratch(s.taps() + s.packed());
    Vec* packed = weights + s.taps();
    const float* problem_kernel =
        kernel.typed_data() + image / s.batch * s.taps() * s.channels + channel;
    PackKernel(problem_kernel, s, lanes, /*mirror=*/false, weights);
    Pack(x.typed_data() + first, s, lanes, (s.rows - 1) / 2, (s.columns - 1) / 2, packed);
    Correlate(packed, weights, s, lanes, y->typed_data() + first);
  });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> kernel,
                    ffi::Buffer<ffi::F32> y_grad, ffi::ResultBuffer<ffi::F32> x_grad,
                    ffi::ResultBuffer<ffi::F32> kernel_grad) {
  const Shape s = ShapeOf(x, kernel);
  // With few vectors of channels, split the batch too, and add the partial sums afterwards.
  const int64_t parts = std::max<int64_t>(1, std::min(s.batch, kItems / s.blocks()));
  std::vector<Vec> sums(s.problems * parts * s.blocks() * s.taps());
  const int64_t top = (s.rows - 1) / 2, left = (s.columns - 1) / 2;
  // The input gradient is the same sum with the kernel and the padding mirrored.
  const int64_t g_top = s.rows / 2, g_left = s.columns / 2;
  ParallelFor(pool, s.problems * parts * s.blocks(), [&](int64_t item) {
    const int64_t problem = item / s.blocks() / parts, part = item / s.blocks() % parts;
    const int64_t channel = item % s.blocks() * kLanes;
    const int64_t lanes = std::min(kLanes, s.channels - channel);
    Vec* weights = Scratch(s.taps() + 2 * s.packed());
    Vec *packed_x = weights + s.taps(), *packed_g = packed_x + s.packed();
    const int64_t kernel_at = problem * s.taps() * s.channels + channel;
    PackKernel(kernel.typed_data() + kernel_at, s, lanes, /*mirror=*/true, weights);
    for (int64_t b = part * s.batch / parts; b < (part + 1) * s.batch / parts; ++b) {
      const int64_t first = (problem * s.batch + b) * s.image() + channel;
      Pack(y_grad.typed_data() + first, s, lanes, g_top, g_left, packed_g);
      Correlate(packed_g, weights, s, lanes, x_grad->typed_data() + first);
      Pack(x.typed_data() + first, s, lanes, top, left, packed_x);
      AddKernelGrad(packed_x, packed_g + g_top * s.pitch() + g_left, s,
                    sums.data() + item * s.taps());
    }
  });
  for (int64_t problem = 0; problem < s.problems; ++problem) {
    for (int64_t block = 0; block < s.blocks(); ++block) {
      const int64_t channel = block * kLanes, lanes = std::min(kLanes, s.channels - channel);
      for (int64_t tap = 0; tap < s.taps(); ++tap) {
        Vec sum = {};
        for (int64_t part = 0; part < parts; ++part) {
          sum += sums[((problem * parts + part) * s.blocks() + block) * s.taps() + tap];
        }
        const int64_t at = (problem * s.taps() + tap) * s.channels + channel;
        Store(sum, kernel_grad->typed_data() + at, lanes);
      }
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DepthwiseForward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(DepthwiseBackward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
