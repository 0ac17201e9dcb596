// Resizes 8-bit images, bit-identical to Pillow.
//
// As in Pillow's Resample.c, the kernel is stretched by the scale when downsampling, weights are
// fixed-point with 22 fractional bits, and rows are resized first, to 8 bits, then columns. Pillow
// processes one pixel at a time; this code processes sixteen rows, then sixteen columns, with GCC
// and Clang vector extensions, which need no processor-specific intrinsics.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;  // of a vector register
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = 16;  // rows or columns resized at once
constexpr int kParts = kLanes * sizeof(int32_t) / kBytes;
constexpr int kPlaces = 22;  // fractional bits of a weight

typedef uint8_t Pixels __attribute__((vector_size(kLanes), may_alias));
typedef int32_t Part __attribute__((vector_size(kBytes)));

// One pixel of each of the sixteen rows or columns, widened to int32.
struct Wide {
  Part parts[kParts];
};

// Uninitialized scratch memory.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// The consecutive inputs of one output, starting at `first`, and their weights.
struct Taps {
  int first, count;
  const int32_t* weights;
};

double triangle(double x) { return x < 1 ? 1 - x : 0; }

double cubic(double x) {  // Keys, a = -1/2
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// The taps of all outputs along one axis.
class Kernel {
 public:
  Kernel(int from, int to, bool is_cubic) : taps_(to) {
    const double scale = static_cast<double>(from) / to, stretch = scale > 1 ? scale : 1;
    const double support = (is_cubic ? 2 : 1) * stretch;
    const int most = static_cast<int>(std::ceil(support)) * 2 + 1;
    weights_.resize(static_cast<int64_t>(to) * most);
    std::vector<double> exact(most);
    int32_t* weights = weights_.data();
    for (int i = 0; i < to; i++, weights += most) {
      const double centre = (i + 0.5) * scale;
      const int first = std::max(0, static_cast<int>(centre - support + 0.5));
      const int count = std::min(from, static_cast<int>(centre + support + 0.5)) - first;
      double sum = 0;
      for (int k = 0; k < count; k++) {
        const double x = std::abs((k + first - centre + 0.5) * (1 / stretch));
        exact[k] = is_cubic ? cubic(x) : triangle(x);
        sum += exact[k];
      }
      for (int k = 0; k < count; k++) {
        const double fixed = exact[k] / sum * (1 << kPlaces);
        weights[k] = static_cast<int32_t>(fixed + (fixed < 0 ? -0.5 : 0.5));
      }
      taps_[i] = {first, count, weights};
    }
  }

  int size() const { return taps_.size(); }
  const Taps& operator[](int i) const { return taps_[i]; }

 private:
  std::vector<int32_t> weights_;
  std::vector<Taps> taps_;
};

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Pixels){__VA_ARGS__})
#endif

Pixels interleave_low(Pixels a, Pixels b) {
  return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

Pixels interleave_high(Pixels a, Pixels b) {
  return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

Pixels even(Pixels a, Pixels b) {
  return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

Pixels load(const uint8_t* from) {
  Pixels pixels;
  std::memcpy(&pixels, from, sizeof pixels);
  return pixels;
}

void store(uint8_t* to, Pixels pixels) { std::memcpy(to, &pixels, sizeof pixels); }

inline void widen(Pixels pixels, Wide* to) {
  const Pixels zero = {};
  const Pixels low = interleave_low(pixels, zero), high = interleave_high(pixels, zero);
  // Written in quarters: copying a whole array would stall on the stores of its parts.
  Pixels* quarters = reinterpret_cast<Pixels*>(to);
  quarters[0] = SHUFFLE(low, zero, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  quarters[1] = SHUFFLE(low, zero, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  quarters[2] = SHUFFLE(high, zero, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  quarters[3] = SHUFFLE(high, zero, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
}

// Requires values from 0 to 255.
Pixels narrow(const Wide& wide) {
  Pixels q[4];
  std::memcpy(q, &wide, sizeof q);
  return even(even(q[0], q[1]), even(q[2], q[3]));
}

// One output; its inputs are `step` apart in `in`.
inline Pixels weigh(const Wide* in, int step, const Taps& taps) {
  Wide sum;
  for (Part& part : sum.parts) part = Part{} + (1 << (kPlaces - 1));
  in += static_cast<int64_t>(taps.first) * step;
  for (int k = 0; k < taps.count; k++, in += step)
    for (int p = 0; p < kParts; p++) sum.parts[p] += in->parts[p] * taps.weights[k];
  for (Part& part : sum.parts) {
    part >>= kPlaces;
    part &= ~(part >> 31);        // below 0: 0
    part |= (255 - part) >> 31;  // above 255: all ones, narrowed to 255
  }
  return narrow(sum);
}

inline void transpose(Pixels (&tile)[kLanes]) {
  for (int round = 0; round < 4; round++) {
    Pixels mixed[kLanes];
    for (int l = 0; l < kLanes / 2; l++) {
      mixed[2 * l] = interleave_low(tile[l], tile[l + kLanes / 2]);
      mixed[2 * l + 1] = interleave_high(tile[l], tile[l + kLanes / 2]);
    }
    std::memcpy(tile, mixed, sizeof tile);
  }
}

// [height, width, channels] to [height, to, channels]; `out` has room for kLanes - 1 extra rows.
void resize_rows(const uint8_t* in, int64_t stride, int height, int width, int channels,
                 const Kernel& kernel, uint8_t* out) {
  const int to = kernel.size(), in_row = width * channels, out_row = to * channels;
  const auto strip = scratch<Wide>(in_row);
  const auto columns = scratch<Pixels>(out_row);
  Pixels tile[kLanes];
  for (int64_t top = 0; top < height; top += kLanes) {
    for (int x = 0; x < in_row; x += kLanes) {
      const int at = std::min(x, in_row - kLanes);  // the last one overlaps the previous one
      for (int64_t l = 0; l < kLanes; l++)
        tile[l] = load(in + std::min<int64_t>(top + l, height - 1) * stride + at);
      transpose(tile);
      for (int l = 0; l < kLanes; l++) widen(tile[l], &strip[at + l]);
    }
    for (int i = 0; i < to; i++)
      for (int c = 0; c < channels; c++)
        columns[i * channels + c] = weigh(strip.get() + c, channels, kernel[i]);
    for (int x = 0; x < out_row; x += kLanes) {
      const int at = std::min(x, out_row - kLanes);
      std::memcpy(tile, columns.get() + at, sizeof tile);
      transpose(tile);
      for (int64_t l = 0; l < kLanes; l++) store(out + (top + l) * out_row + at, tile[l]);
    }
  }
}

// [height, row] to [to, row]
void resize_columns(const uint8_t* in, int height, int row, const Kernel& kernel,
                    uint8_t* out) {
  const int64_t to = kernel.size();
  const auto strip = scratch<Wide>(height);
  for (int x = 0; x < row; x += kLanes) {
    const int at = std::min(x, row - kLanes);
    for (int64_t y = 0; y < height; y++) widen(load(in + y * row + at), &strip[y]);
    for (int64_t i = 0; i < to; i++) store(out + i * row + at, weigh(strip.get(), 1, kernel[i]));
  }
}

}  // namespace

// From [height, width, channels], rows `stride` bytes apart, to [to_height, to_width, channels].
// Input and output rows must have at least sixteen bytes.
extern "C" void resize(const uint8_t* in, int64_t stride, int height, int width, int channels,
                       int to_height, int to_width, int is_cubic, uint8_t* out) noexcept {
  const int row = to_width * channels;
  const auto between = scratch<uint8_t>(static_cast<int64_t>(height + kLanes - 1) * row);
  resize_rows(in, stride, height, width, channels, Kernel(width, to_width, is_cubic),
              between.get());
  resize_columns(between.get(), height, row, Kernel(height, to_height, is_cubic), out);
}
