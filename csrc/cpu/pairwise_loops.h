// The loops behind pairwise.h, on GCC/Clang vector types of TORE_FAST_LANES floats. Included by exactly two
// files, each of which defines TORE_FAST_LANES and the name of its table. No std containers here (they would
// be shared with code compiled for lesser machines).
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#include "pairwise.h"
#include "transpose.h"

namespace tore_fast::cpu {
namespace {

constexpr int kLanes = TORE_FAST_LANES;
constexpr int kVecs = kPanel / kLanes;  // vectors of a panel row
constexpr int kTileVecs = 2;            // vector columns of a register tile
constexpr int kTileRows = 4;            // 4 x 2 accumulators: covers the latency of the fused multiply-add
constexpr int64_t kChannelBlock = 64;   // partial sums of 64 terms keep float32 rounding near 1e-7
constexpr float kInf = __builtin_huge_valf();
constexpr int32_t kNone = INT32_MAX;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef int32_t UnalignedInts __attribute__((vector_size(kLanes * 4), aligned(4)));

#define TF_INLINE inline __attribute__((always_inline))

TF_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
TF_INLINE Ints load(const int32_t* p) { return *reinterpret_cast<const UnalignedInts*>(p); }
TF_INLINE void store(float* p, const Vec& v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
TF_INLINE void store(int32_t* p, const Ints& v) { *reinterpret_cast<UnalignedInts*>(p) = v; }
TF_INLINE Vec splat(float v) {
#if TORE_FAST_LANES == 8
  return Vec{v, v, v, v, v, v, v, v};
#else
  return Vec{v, v, v, v};
#endif
}
TF_INLINE Vec min(const Vec& a, const Vec& b) { return a < b ? a : b; }
TF_INLINE Vec max(const Vec& a, const Vec& b) { return a > b ? a : b; }

// One bit per lane of a comparison result.
TF_INLINE int bits(const Ints& m) {
#if defined(__AVX2__)
  static_assert(kLanes == 8);
  return _mm256_movemask_ps(reinterpret_cast<const __m256&>(m));
#elif defined(__SSE2__)
  static_assert(kLanes == 4);
  return _mm_movemask_ps(reinterpret_cast<const __m128&>(m));
#else
  int r = 0;
  for (int l = 0; l < kLanes; ++l) r |= (m[l] & 1) << l;
  return r;
#endif
}

// dst[c * kPanel + r] = src[r][c] for kLanes rows r and kLanes channels c.
TF_INLINE void transpose(const float* const* src, int64_t from, float* dst) {
#if defined(__AVX2__)
  __m256 rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(src[i] + from);
  transpose8(rows, dst, kPanel);
#else
  for (int c = 0; c < kLanes; ++c)
    for (int r = 0; r < kLanes; ++r) dst[c * kPanel + r] = src[r][from + c];
#endif
}

void pack(const float* const* rows, int64_t channels, float* out) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes)
    for (int r = 0; r < kPanel; r += kLanes) transpose(rows + r, c, out + c * kPanel + r);
  const int rest = int(channels - c);
  for (int i = 0; i < rest; ++i)
    for (int r = 0; r < kPanel; ++r) out[(c + i) * kPanel + r] = rows[r][c + i];
}

// Four rows against kTileVecs vectors of columns over channels [begin, end).
TF_INLINE void tile(const float* a, const float* b, int64_t begin, int64_t end, float* out) {
  Vec sum[kTileRows][kTileVecs] = {};
  for (int64_t c = begin; c < end; ++c) {
    const Vec b0 = load(b + c * kPanel), b1 = load(b + c * kPanel + kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const Vec ar = splat(a[c * kPanel + r]);
      const Vec d0 = ar - b0, d1 = ar - b1;
      sum[r][0] += d0 * d0;
      sum[r][1] += d1 * d1;
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kTileVecs; ++v) {
      float* o = out + r * kPanel + v * kLanes;
      store(o, begin == 0 ? sum[r][v] : load(o) + sum[r][v]);
    }
  }
}

// out[r * 16 + l] = d2(token r of panel a, token l of panel b)
__attribute__((noinline)) void distances(const Panels& x, const float* a, const float* b, float* out) {
  for (int64_t begin = 0; begin < x.channels; begin += kChannelBlock) {
    const int64_t end = begin + kChannelBlock < x.channels ? begin + kChannelBlock : x.channels;
    for (int r = 0; r < kPanel; r += kTileRows)
      for (int v = 0; v < kPanel; v += kTileVecs * kLanes)
        tile(a + r, b + v, begin, end, out + r * kPanel + v);
  }
  for (int i = 0; i < kPanel * kPanel; i += kLanes) store(out + i, load(out + i) * x.scale);
}

TF_INLINE const float* panel(const Panels& x, int64_t p) { return x.data + p * x.channels * kPanel; }

TF_INLINE bool mine(int64_t p, Share s) {
  const int64_t round = p / s.parts, at = p % s.parts;
  return (round % 2 ? s.parts - 1 - at : at) == s.part;
}

TF_INLINE float largest(const Vec& v) {
  float m = v[0];
  for (int l = 1; l < kLanes; ++l) m = v[l] > m ? v[l] : m;
  return m;
}

// One candidate per lane into the lanes' ascending lists.
template <bool kIds>
TF_INLINE void insert_lanes(Vec candidate, int32_t id, float* list, int32_t* ids, int64_t k) {
  Ints name = Ints{} + id;
  for (int64_t s = 0; s < k; ++s) {
    const Vec held = load(list + s * kPanel);
    const Ints closer = candidate < held;
    store(list + s * kPanel, closer ? candidate : held);
    candidate = closer ? held : candidate;
    if constexpr (kIds) {
      const Ints held_name = load(ids + s * kPanel);
      store(ids + s * kPanel, closer ? name : held_name);
      name = closer ? held_name : name;
    }
  }
}

template <bool kIds>
TF_INLINE void insert_one(float candidate, int32_t id, float* list, int32_t* ids, int64_t k) {
  int64_t s = k - 1;
  for (; s > 0 && list[(s - 1) * kPanel] > candidate; --s) {
    list[s * kPanel] = list[(s - 1) * kPanel];
    if constexpr (kIds) ids[s * kPanel] = ids[(s - 1) * kPanel];
  }
  list[s * kPanel] = candidate;
  if constexpr (kIds) ids[s * kPanel] = id;
}

// The 16 x 16 tile d of row panel p and column panel q, and its transpose, into the matrix.
TF_INLINE void keep_tile(const float* d, int64_t p, int64_t q, float* matrix, int64_t stride) {
  alignas(64) float turned[kPanel * kPanel];
  const float* rows[kPanel];
  for (int r = 0; r < kPanel; ++r) {
    rows[r] = d + r * kPanel;
    std::memcpy(matrix + (p * kPanel + r) * stride + q * kPanel, rows[r], sizeof(float) * kPanel);
  }
  if (p == q) return;
  pack(rows, kPanel, turned);
  for (int l = 0; l < kPanel; ++l)
    std::memcpy(matrix + (q * kPanel + l) * stride + p * kPanel, turned + l * kPanel, sizeof(float) * kPanel);
}

template <bool kIds>
float density_of(const Panels& x, const float* penalty, int64_t k, Share share, float* best, int32_t* ids,
                 float* matrix) {
  for (int64_t i = 0; i < x.count * k * kPanel; ++i) best[i] = kInf;
  if constexpr (kIds)
    for (int64_t i = 0; i < x.count * k * kPanel; ++i) ids[i] = 0;
  const int64_t stride = x.count * kPanel;
  alignas(64) float d[kPanel * kPanel];
  Vec top = {};
  for (int64_t p = 0; p < x.count; ++p) {
    if (!mine(p, share)) continue;
    float* rows = best + p * k * kPanel;
    int32_t* row_ids = kIds ? ids + p * k * kPanel : nullptr;
    for (int64_t q = p; q < x.count; ++q) {
      distances(x, panel(x, p), panel(x, q), d);
      for (int i = 0; i < kPanel * kPanel; i += kLanes) top = max(load(d + i), top);
      if (matrix) keep_tile(d, p, q, matrix, stride);
      float* columns = best + q * k * kPanel;
      int32_t* column_ids = kIds ? ids + q * k * kPanel : nullptr;
      const float *row_penalty = penalty + p * kPanel, *column_penalty = penalty + q * kPanel;
      for (int r = 0; r < kPanel; ++r) {
        const int32_t row = int32_t(p * kPanel + r), column = int32_t(q * kPanel);
        for (int v = 0; v < kVecs; ++v) {  // token r is a candidate of the columns
          const Vec candidate = load(d + r * kPanel + v * kLanes) + row_penalty[r];
          if (bits(candidate < load(columns + (k - 1) * kPanel + v * kLanes)))
            insert_lanes<kIds>(candidate, row, columns + v * kLanes, column_ids + (kIds ? v * kLanes : 0), k);
        }
        if (p == q) continue;
        for (int v = 0; v < kVecs; ++v) {  // the columns are candidates of token r
          const Vec candidate = load(d + r * kPanel + v * kLanes) + load(column_penalty + v * kLanes);
          for (int m = bits(candidate < rows[(k - 1) * kPanel + r]); m; m &= m - 1) {
            const int lane = __builtin_ctz(m);
            const float value = candidate[lane];
            if (value < rows[(k - 1) * kPanel + r])
              insert_one<kIds>(value, column + v * kLanes + lane, rows + r, row_ids + (kIds ? r : 0), k);
          }
        }
      }
    }
  }
  return largest(top);
}

float density(const Panels& x, const float* penalty, int64_t k, Share share, float* best, int32_t* ids,
              float* matrix) {
  return ids ? density_of<true>(x, penalty, k, share, best, ids, matrix)
             : density_of<false>(x, penalty, k, share, best, nullptr, matrix);
}

float delta(const Panels& x, const int32_t* limit, const int32_t* ids, Share share, float* best,
            int32_t* parent) {
  alignas(64) float d[kPanel * kPanel];
  Vec top = {};
  for (int64_t p = 0; p < x.count; ++p) {
    if (!mine(p, share)) continue;
    Vec nearest[kVecs];
    Ints id[kVecs], last[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      nearest[v] = splat(kInf);
      id[v] = Ints{} + kNone;
      last[v] = load(limit + p * kPanel + v * kLanes);
    }
    for (int64_t q = 0; q <= p; ++q) {
      distances(x, panel(x, q), panel(x, p), d);
      for (int v = 0; v < kVecs; ++v) {
        Vec low = splat(kInf);
        for (int r = 0; r < kPanel; ++r) {
          const Vec candidate = load(d + r * kPanel + v * kLanes);
          low = min(candidate, low);
          top = max(candidate, top);
        }
        if (!bits(low <= nearest[v])) continue;
        for (int r = 0; r < kPanel; ++r) {
          const Vec candidate = load(d + r * kPanel + v * kLanes);
          const int32_t candidate_id = ids[q * kPanel + r];
          const Ints closer = (candidate < nearest[v]) | ((candidate == nearest[v]) & (candidate_id < id[v]));
          const Ints take = closer & (int32_t(q * kPanel + r) < last[v]);
          nearest[v] = take ? candidate : nearest[v];
          id[v] = take ? Ints{} + candidate_id : id[v];
        }
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      store(best + p * kPanel + v * kLanes, nearest[v]);
      store(parent + p * kPanel + v * kLanes, id[v]);
    }
  }
  return largest(top);
}

void nearest_before(const Panels& x, const Panels& of, const int32_t* limit, Share share, float* best) {
  alignas(64) float d[kPanel * kPanel];
  for (int64_t p = 0; p < of.count; ++p) {
    if (!mine(p, share)) continue;
    Vec nearest[kVecs];
    Ints last[kVecs];
    int32_t end = 0;
    for (int l = 0; l < kPanel; ++l) end = limit[p * kPanel + l] > end ? limit[p * kPanel + l] : end;
    for (int v = 0; v < kVecs; ++v) {
      nearest[v] = splat(kInf);
      last[v] = load(limit + p * kPanel + v * kLanes);
    }
    for (int64_t q = 0; q * kPanel < end; ++q) {
      distances(x, panel(x, q), panel(of, p), d);
      for (int r = 0; r < kPanel; ++r) {
        const int32_t place = int32_t(q * kPanel + r);
        for (int v = 0; v < kVecs; ++v) {
          const Vec candidate = load(d + r * kPanel + v * kLanes);
          const Ints take = (candidate < nearest[v]) & (place < last[v]);
          nearest[v] = take ? candidate : nearest[v];
        }
      }
    }
    for (int v = 0; v < kVecs; ++v) store(best + p * kPanel + v * kLanes, nearest[v]);
  }
}

void assign(const Panels& x, const Panels& centers, int64_t begin, int64_t end, int32_t* rank) {
  alignas(64) float d[kPanel * kPanel];
  for (int64_t p = begin; p < end; ++p) {
    Vec nearest[kVecs];
    Ints id[kVecs];
    for (int v = 0; v < kVecs; ++v) nearest[v] = splat(kInf), id[v] = Ints{};
    for (int64_t q = 0; q < centers.count; ++q) {
      distances(x, panel(centers, q), panel(x, p), d);
      for (int v = 0; v < kVecs; ++v) {
        Vec low = splat(kInf);
        for (int r = 0; r < kPanel; ++r) low = min(load(d + r * kPanel + v * kLanes), low);
        if (!bits(low < nearest[v])) continue;
        for (int r = 0; r < kPanel; ++r) {
          const Vec candidate = load(d + r * kPanel + v * kLanes);
          const Ints take = candidate < nearest[v];
          nearest[v] = take ? candidate : nearest[v];
          id[v] = take ? Ints{} + int32_t(q * kPanel + r) : id[v];
        }
      }
    }
    for (int v = 0; v < kVecs; ++v) store(rank + p * kPanel + v * kLanes, id[v]);
  }
}

void delta_of_matrix(const float* matrix, int64_t stride, const float* rho, int64_t tokens, bool strict,
                     int64_t begin, int64_t end, float* best, int32_t* parent) {
  Ints lane = {};
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  const Ints ties = Ints{} - (strict ? 0 : 1);
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec nearest = splat(kInf);
    Ints id = Ints{} + kNone;
    const Vec own = load(rho + j);
    const Ints token = lane + int32_t(j);
    for (int32_t i = 0; i < tokens; ++i) {
      const Vec candidate = load(matrix + i * stride + j);
      const Ints denser = (rho[i] > own) | ((rho[i] == own) & (i < token) & ties);
      const Ints take = denser & (candidate < nearest);
      nearest = take ? candidate : nearest;
      id = take ? Ints{} + i : id;
    }
    store(best + j, nearest);
    store(parent + j, id);
  }
}

void assign_of_matrix(const float* matrix, int64_t stride, const int32_t* centers, int64_t count,
                      int64_t begin, int64_t end, int32_t* rank) {
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec nearest = splat(kInf);
    Ints id = {};
    for (int32_t r = 0; r < count; ++r) {
      const Vec candidate = load(matrix + centers[r] * stride + j);
      const Ints take = candidate < nearest;
      nearest = take ? candidate : nearest;
      id = take ? Ints{} + r : id;
    }
    store(rank + j, id);
  }
}

#undef TF_INLINE

}  // namespace

const Pairwise TORE_FAST_TABLE{pack,   density, delta, nearest_before, assign, delta_of_matrix, assign_of_matrix};

}  // namespace tore_fast::cpu
