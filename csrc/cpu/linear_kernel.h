// The kernel of strassen_linear, once per vector width: the including file's flags decide (no std containers in here).
//
// Rows go in chunks of up to 48 rows per block, so that a chunk of x and its results stay in L2. For each product: the
// sum of blocks of x is written once (row-major, a few kB), then panels of the packed weight meet it tile by tile; a
// finished tile is added from registers to the up to 4 result blocks it belongs to. The last addition to a block of
// results also brings it to y, scaled back and with bias, activation and residual, while it is in L1.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

#include "linear.h"

namespace tore_fast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kPanel = 4;  // 6 x 4 vectors of results, 4 of the weight, 1 of x in 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8, kPanel = 2;  // 6 x 2, 2 and 1 in 16 registers
#else
constexpr int kLanes = 4, kPanel = 2;
#endif
constexpr int R = kStrassenRows;
// as in attention_tile.h, but up to 16 wide: that file's helpers know 8 at most
typedef float lanes __attribute__((vector_size(kLanes * 4)));
typedef int32_t ilanes __attribute__((vector_size(kLanes * 4)));
typedef float lanes_unaligned __attribute__((vector_size(kLanes * 4), aligned(4)));

inline lanes get(const float* p) { return *reinterpret_cast<const lanes_unaligned*>(p); }
inline void put(float* p, lanes v) { *reinterpret_cast<lanes_unaligned*>(p) = v; }
inline lanes all(float v) { return v - lanes{}; }

// 2^e with 2^e <= largest < 2^(e + 1), held where both it and its inverse are normal numbers.
inline float power_of_two(float largest) {
  uint32_t bits;
  std::memcpy(&bits, &largest, 4);
  uint32_t exponent = (bits & 0x7fffffffu) >> 23;
  exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  bits = exponent << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return power;
}

// Panels of 1..kPanel vectors, as even as can be: where the panel begins and ends, in vectors.
struct Panels {
  int64_t vectors, count;
  explicit Panels(int64_t columns) : vectors(columns / kLanes), count((vectors + kPanel - 1) / kPanel) {}
  int64_t begin(int64_t panel) const { return vectors * panel / count; }
};

// A panel's sums of rows of W are made row by row in `sums` [kPanel * kLanes, depth] and then turned over.
inline void pack_product(const StrassenPack& p, int64_t index, float* sums) {
  const StrassenProduct& product = strassen_products(p.level)[index];
  const int64_t grid = int64_t(1) << p.level, depth = p.in / grid, columns = p.out / grid;
  float* to = p.packed + index * depth * columns;
  const Panels panels(columns);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t n0 = panels.begin(panel) * kLanes, width = panels.begin(panel + 1) * kLanes - n0;
    for (int64_t n = 0; n < width; ++n) {
      float* sum = sums + n * depth;
      for (int i = 0; i < product.nw; ++i) {
        const StrassenTerm& t = product.w[i];  // blocks of W^T: in by out
        const int64_t row = t.block % grid * columns + n0 + n;
        const float* w = p.weight + row * p.in + t.block / grid * depth;
        const lanes factor = all(t.sign / p.column[row]);
        for (int64_t k = 0; k < depth; k += kLanes) put(sum + k, (i ? get(sum + k) : lanes{}) + factor * get(w + k));
      }
    }
    for (int64_t k0 = 0; k0 < depth; k0 += 16)
      for (int64_t k = k0; k < k0 + 16; ++k)
        for (int64_t n = 0; n < width; ++n) to[k * width + n] = sums[n * depth + k];
    to += depth * width;
  }
}

// Largest magnitude of a row as a power of two; false if the row is not finite.
inline bool row_power(const float* x, int64_t count, float* power) {
  ilanes m0{}, m1{};
  for (int64_t k = 0; k < count; k += 2 * kLanes) {  // count is a multiple of 16: twice 16 may reach beyond it
    const bool pair = k + kLanes < count;
    lanes a = get(x + k), b = pair ? get(x + k + kLanes) : a;
    ilanes ia, ib;
    std::memcpy(&ia, &a, sizeof ia);
    std::memcpy(&ib, &b, sizeof ib);
    ia &= 0x7fffffff, ib &= 0x7fffffff;  // magnitudes order as integers do, NaN above infinity
    m0 = ia > m0 ? ia : m0;
    m1 = ib > m1 ? ib : m1;
  }
  m0 = m0 > m1 ? m0 : m1;
  int32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = m0[i] > largest ? m0[i] : largest;
  float value;
  std::memcpy(&value, &largest, 4);
  *power = power_of_two(value);
  return largest < 0x7f800000;
}

template <int N>
inline void sum_rows(const float* const* x, const float* const* factor, const float* sign, int64_t stride, int64_t depth,
                     int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r, to += depth) {
    lanes f[N];
    const float* row[N];
    for (int i = 0; i < N; ++i) {
      f[i] = all(sign[i] * factor[i][r]);
      row[i] = x[i] + r * stride;
    }
    for (int64_t k = 0; k < depth; k += kLanes) {
      lanes v = f[0] * get(row[0] + k);
      for (int i = 1; i < N; ++i) v += f[i] * get(row[i] + k);
      put(to + k, v);
    }
  }
}

// to [rows of a block, depth] = the product's signed sum of blocks of x, each row times its factor
inline void sum_blocks(const StrassenProduct& product, const float* x, const float* factor, int64_t in, int64_t grid,
                       int64_t rows, float* to) {
  const int64_t depth = in / grid;
  const float *block[4] = {}, *scale[4] = {};
  float sign[4] = {};
  for (int i = 0; i < product.nx; ++i) {
    const StrassenTerm& t = product.x[i];
    block[i] = x + t.block / grid * rows * in + t.block % grid * depth;
    scale[i] = factor + t.block / grid * rows;
    sign[i] = t.sign;
  }
  if (product.nx == 1) sum_rows<1>(block, scale, sign, in, depth, rows, to);
  if (product.nx == 2) sum_rows<2>(block, scale, sign, in, depth, rows, to);
  if (product.nx == 4) sum_rows<4>(block, scale, sign, in, depth, rows, to);
}

enum class Add : int32_t { set, set_negative, plus, minus };

struct Result {
  float* tile;  // [R, NV * kLanes] of a result block
  Add how;
};

template <int NV, int Rows, Add How>
inline void add_tile(const lanes (&acc)[Rows][NV], float* to) {
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j, to += kLanes) {
      if (How == Add::set) put(to, acc[i][j]);
      if (How == Add::set_negative) put(to, -acc[i][j]);
      if (How == Add::plus) put(to, get(to) + acc[i][j]);
      if (How == Add::minus) put(to, get(to) - acc[i][j]);
    }
  }
}

// acc = a b over `depth`, added to every result. a: Rows rows of `depth`; b: [depth, NV * kLanes]; one line of `next` per step
// is fetched into L2 on the way (the weights stream through the caches: without it the first tile of a panel waits).
// Every loop over acc is unrolled by name: left alone, gcc keeps acc in memory.
template <int NV, int Rows>
__attribute__((noinline)) void product_tile(const float* a, const float* b, int64_t depth, const float* next,
                                            const Result* result, int count) {
  lanes acc[Rows][NV];
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = lanes{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    lanes w[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) w[j] = get(b + j * kLanes);
    b += NV * kLanes;
    __builtin_prefetch(next, 0, 2);
    next += 16;
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const lanes v = all(a[i * depth]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += v * w[j];
    }
    ++a;
  }
  for (int n = 0; n < count; ++n) {
    float* to = result[n].tile;
    switch (result[n].how) {
      case Add::set: add_tile<NV, Rows, Add::set>(acc, to); break;
      case Add::set_negative: add_tile<NV, Rows, Add::set_negative>(acc, to); break;
      case Add::plus: add_tile<NV, Rows, Add::plus>(acc, to); break;
      default: add_tile<NV, Rows, Add::minus>(acc, to);
    }
  }
}

using Tile = void (*)(const float*, const float*, int64_t, const float*, const Result*, int);

template <int NV>
inline Tile tile_of(int64_t rows) {
  constexpr Tile table[] = {product_tile<NV, 1>, product_tile<NV, 2>, product_tile<NV, 3>,
                            product_tile<NV, 4>, product_tile<NV, 5>, product_tile<NV, 6>};
  return table[rows - 1];
}

inline Tile tile_of(int64_t vectors, int64_t rows) {
#if defined(__AVX512F__)
  if (vectors == 3) return tile_of<3>(rows);
  if (vectors == 4) return tile_of<4>(rows);
#endif
  return vectors == 1 ? tile_of<1>(rows) : tile_of<2>(rows);
}

// erf as x P(x^2) / Q(x^2), fitted here to 1e-8 on |x| < 3.8, where 1 - erf is 8e-8; NaN stays NaN.
inline lanes erf_of(lanes x) {
  const lanes t = x * x;
  lanes p = t * 2.1321407e-06f + 2.8799884e-04f;
  p = p * t + 3.6935805e-03f;
  p = p * t + 5.2547243e-02f;
  p = p * t + 1.8811540e-01f;
  p = p * t + 1.1283791e+00f;
  lanes q = t * 3.9097911e-05f + 1.1537374e-03f;
  q = q * t + 1.4822864e-02f;
  q = q * t + 1.1325458e-01f;
  q = q * t + 5.0004519e-01f;
  q = q * t + 1.f;
  const lanes inside = x * p / q, edge = all(3.8f);
  return x >= edge ? all(1.f) : x <= -edge ? all(-1.f) : inside;
}

inline lanes activate(lanes v, StrassenAct act) {
  if (act == StrassenAct::relu) return v < lanes{} ? lanes{} : v;
  if (act == StrassenAct::gelu) return v * 0.5f * (1.f + erf_of(v * 0.70710678f));
  return v;
}

// y = act(tile * row * column + bias) + residual for `rows` rows of up to kPanel vectors, which lie `stride` floats apart
// in `tile`; not `scaled`: without the factors.
inline void emit(const StrassenLinear& p, const float* tile, int64_t stride, const float* row, int64_t r0, int64_t rows,
                 int64_t column0, int64_t vectors, bool scaled) {
  const int64_t width = p.out / p.split;
  int64_t at[kPanel];  // of row 0
  for (int64_t j = 0; j < vectors; ++j) {
    const int64_t column = column0 + j * kLanes, part = p.split > 1 ? column / width : 0;
    at[j] = part * p.rows * width + column - part * width;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const lanes scale = all(row[i]);
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t column = column0 + j * kLanes, to = at[j] + (r0 + i) * width;
      lanes v = get(tile + i * stride + j * kLanes);
      if (scaled) {  // the smaller first: nothing overflows on the way to a result that does not
        const lanes other = get(p.column + column);
        v = v * (other < scale ? other : scale) * (other < scale ? scale : other);
      }
      if (p.bias) v += get(p.bias + column);
      v = activate(v, p.act);
      if (p.residual) v += get(p.residual + to);
      put(p.y + to, v);
    }
  }
}

// to = (x - mean) / sqrt(variance + eps); false if that is not finite.
inline bool normalise(const float* x, int64_t count, float eps, float* to) {
  lanes sum{};
  for (int64_t k = 0; k < count; k += kLanes) sum += get(x + k);
  float total = 0.f;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  const float mean = total / float(count);
  lanes squares{};
  for (int64_t k = 0; k < count; k += kLanes) {
    const lanes v = get(x + k) - mean;
    squares += v * v;
    put(to + k, v);
  }
  total = 0.f;
  for (int i = 0; i < kLanes; ++i) total += squares[i];
  const float inverse = 1.f / __builtin_sqrtf(total / float(count) + eps);
  for (int64_t k = 0; k < count; k += kLanes) put(to + k, get(to + k) * inverse);
  return total < std::numeric_limits<float>::infinity();  // false for NaN too
}

inline int64_t linear_scratch(const StrassenLinear& p, int64_t units) {
  const int64_t block = units < kStrassenChunk ? units : kStrassenChunk, rows = block * p.grid();
  return rows * (p.in + p.out + 2) + block * (p.in / p.grid()) + 16;
}

// Rows r0 .. r0 + rows of y; `block_rows` of them in each of the 1 << level blocks of rows, the last of which may lack some.
inline void linear_chunk(const StrassenLinear& p, int64_t r0, int64_t rows, int64_t block_rows, float* scratch) {
  const int64_t grid = p.grid(), depth = p.in / grid, columns = p.out / grid, padded = block_rows * grid;
  float* results = scratch;                    // grid x grid blocks of [panel][row][columns of the panel]
  float* sums = results + padded * p.out;      // [block_rows, depth]
  float* copy = sums + block_rows * depth;     // [padded, in]
  float *factor = copy + padded * p.in, *power = factor + padded;
  const float* x = p.x + r0 * p.in;
  bool copied = p.norm_eps >= 0.f || rows != padded;
  for (int64_t r = 0; r < padded; ++r) {
    power[r] = factor[r] = 1.f;
    if (r >= rows) continue;
    bool finite;
    if (p.norm_eps >= 0.f) {
      finite = normalise(x + r * p.in, p.in, p.norm_eps, copy + r * p.in);  // no entry above sqrt(in)
    } else {
      finite = row_power(x + r * p.in, p.in, power + r);
      factor[r] = 1.f / power[r];
    }
    if (!finite) factor[r] = 0.f;
    copied = copied || !finite;
  }
  if (copied) {  // rows that are missing or not finite: 0 in the sums
    for (int64_t r = 0; r < padded; ++r) {
      float* to = copy + r * p.in;
      if (r >= rows || factor[r] == 0.f) std::memset(to, 0, p.in * sizeof(float));
      else if (p.norm_eps < 0.f) std::memcpy(to, x + r * p.in, p.in * sizeof(float));
    }
    x = copy;
  }
  const Panels panels(columns);
  const StrassenProduct* product = strassen_products(p.level);
  const float* w = p.packed;
  for (int64_t index = 0; index < strassen_count(p.level); ++index, ++product) {
    sum_blocks(*product, x, factor, p.in, grid, block_rows, sums);
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t begin = panels.begin(panel), vectors = panels.begin(panel + 1) - begin;
      const int64_t size = depth * vectors * kLanes;
      for (int64_t first = 0; first < block_rows; first += R) {
        const int64_t count = block_rows - first < R ? block_rows - first : R;
        Result result[4];
        for (int i = 0; i < product->ny; ++i) {
          const StrassenTerm& y = product->y[i];
          result[i].tile = results + y.block * block_rows * columns + (begin * block_rows + first * vectors) * kLanes;
          result[i].how = y.first ? (y.sign < 0.f ? Add::set_negative : Add::set) : y.sign < 0.f ? Add::minus : Add::plus;
        }
        const int64_t ahead = first / R * depth * 16;
        const float* next = ahead < size ? w + size + ahead : w;
        tile_of(vectors, count)(sums + first * depth, w, depth, next, result, product->ny);
        for (int i = 0; i < product->ny; ++i) {
          const StrassenTerm& y = product->y[i];
          const int64_t r = y.block / grid * block_rows + first, there = rows - r < count ? rows - r : count;
          if (!y.last || there <= 0) continue;
          emit(p, result[i].tile, vectors * kLanes, power + r, r0 + r, there, y.block % grid * columns + begin * kLanes,
               vectors, true);
        }
      }
      w += size;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (factor[r] != 0.f) continue;
    const float *from = p.x + (r0 + r) * p.in, one = 1.f;
    for (int64_t n = 0; n < p.out; ++n) {
      float sum = p.norm_eps >= 0.f ? std::numeric_limits<float>::quiet_NaN() : 0.f;  // such a row has no norm
      for (int64_t k = 0; k < p.in && p.norm_eps < 0.f; ++k) sum += from[k] * p.weight[n * p.in + k];
      results[n] = sum;
    }
    for (int64_t n = 0; n < p.out; n += kLanes) emit(p, results + n, 0, &one, r0 + r, 1, n, 1, false);
  }
}

// Units begin .. end in chunks of equal size, but for one row of every block.
inline void linear_units(const StrassenLinear& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t chunks = (end - begin + kStrassenChunk - 1) / kStrassenChunk;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t from = begin + (end - begin) * c / chunks, to = begin + (end - begin) * (c + 1) / chunks;
    const int64_t r0 = from * p.grid(), r1 = to * p.grid();
    linear_chunk(p, r0, (r1 < p.rows ? r1 : p.rows) - r0, to - from, scratch);
  }
}

}  // namespace
}  // namespace tore_fast::cpu
