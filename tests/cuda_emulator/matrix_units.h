// ldmatrix, mma, cp.async and cluster operations of csrc/cuda/ptx.cuh, from the register layouts in the PTX manual. Products
// of a mma are added in order in float32; the hardware's truncation of addends is not modelled.
#pragma once
#include "machine.h"

namespace emulator {

struct Registers {
  uint32_t r[4];
};

// Matrix m of `count`: lanes 8 m .. 8 m + 7 give the addresses of its rows of 8 16-bit numbers.
inline Registers load_matrices(const void* row, int count, bool transposed) {
  const bool asked = int(threadIdx.x % 32) < 8 * count;
  if (asked && reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: a row is not 16-byte aligned");
  if (asked && !in_shared(row, 16)) fail("ldmatrix: a row is not in shared memory");
  return exchange(0xffffffffu, row, [&](const void* const* rows, unsigned lane) {
    Registers out{};
    for (int m = 0; m < count; ++m) {
      const auto value = [&](unsigned r, unsigned c) {
        uint16_t v;
        std::memcpy(&v, static_cast<const char*>(rows[8 * m + r]) + 2 * c, 2);
        return uint32_t(v);
      };
      const unsigned r = lane / 4, c = 2 * (lane % 4);
      out.r[m] = transposed ? value(c, r) | value(c + 1, r) << 16 : value(r, c) | value(r, c + 1) << 16;
    }
    return out;
  });
}

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline float half_value(uint32_t pair, int which, bool bf16) {
  const uint16_t bits = uint16_t(which ? pair >> 16 : pair);
  if (bf16) return bits_to_float(uint32_t(bits) << 16);
  _Float16 h;
  std::memcpy(&h, &bits, sizeof h);
  return float(h);
}

struct Fragments {
  uint32_t a[4], b[2];
};
struct Sum {
  float c[4];
};

// a: groups of 8 x (4 lanes x kPack numbers); register (row half) + 2 (k half).
template <int kPack, typename Value>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Value value) {
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const Sum sum = exchange(0xffffffffu, mine, [&](const Fragments* all, unsigned lane) {
    Sum s;
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned row = lane / 4 + 8 * (e / 2), column = 2 * (lane % 4) + e % 2;
      s.c[e] = c[e];
      for (unsigned k = 0; k < 8 * kPack; ++k) {
        const unsigned half = k / (4 * kPack), inner = k % (4 * kPack);
        const Fragments &fa = all[row % 8 * 4 + inner / kPack], &fb = all[column * 4 + inner / kPack];
        s.c[e] += value(fa.a[row / 8 + 2 * half], inner % kPack) * value(fb.b[half], inner % kPack);
      }
    }
    return s;
  });
  std::memcpy(c, sum.c, sizeof c);
}

inline void run_copies(int keep) {
  std::vector<Copy> left;
  for (const Copy& c : self().copies) {
    if (c.group >= self().groups - keep) {
      left.push_back(c);
      continue;
    }
    std::memcpy(c.to, c.from, c.filled);
    std::memset(static_cast<char*>(c.to) + c.filled, 0, c.bytes - c.filled);
  }
  self().copies.swap(left);
}

}  // namespace emulator

namespace tore_fast::cuda {

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const emulator::Registers out = emulator::load_matrices(row, 4, false);
  std::memcpy(r, out.r, sizeof r);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const emulator::Registers out = emulator::load_matrices(row, 4, true);
  std::memcpy(r, out.r, sizeof r);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  const emulator::Registers out = emulator::load_matrices(row, 2, false);
  std::memcpy(r, out.r, sizeof r);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  const emulator::Registers out = emulator::load_matrices(row, 2, true);
  std::memcpy(r, out.r, sizeof r);
}

template <bool kBf16>
void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply<2>(c, a, b0, b1, [](uint32_t v, int which) { return emulator::half_value(v, which, kBf16); });
}
inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bf16) {
  emulator::multiply<2>(c, a, b0, b1, [&](uint32_t v, int which) { return emulator::half_value(v, which, bf16); });
}
inline void mma_1688_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  // the unit reads 10 bits of the fraction, whatever the rest holds
  emulator::multiply<1>(c, a, b0, b1, [](uint32_t v, int) { return emulator::bits_to_float(v & 0xffffe000u); });
}
inline uint32_t to_tf32(float v) {  // cvt.rna.tf32.f32: nearest, ties away from zero
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return v == v && (u & 0x7f800000u) != 0x7f800000u ? (u + 0x1000u) & 0xffffe000u : u;
}

template <int kBytes>
void cp_async(void* to, const void* from, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (reinterpret_cast<uintptr_t>(to) % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes)
    emulator::fail("cp.async: an address is not aligned to the size");
  if (valid < 0 || valid > kBytes) emulator::fail("cp.async: more bytes than its size");
  if (!emulator::in_shared(to, kBytes)) emulator::fail("cp.async: the target is not in shared memory");
  emulator::self().copies.push_back({to, from, kBytes, valid, emulator::self().groups});
}
inline void cp_async_commit() { ++emulator::self().groups; }
template <int kKeep>
void cp_async_wait() {
  emulator::run_copies(kKeep);
}

inline unsigned cluster_rank() { return emulator::own_rank(); }
inline unsigned cluster_size() { return unsigned(emulator::blocks.size()); }
inline void cluster_sync() { emulator::wait(emulator::State::kCluster); }
template <typename T>
T* cluster_map(T* p, unsigned rank) {
  return static_cast<T*>(emulator::map_shared(const_cast<std::remove_const_t<T>*>(p), rank));
}

}  // namespace tore_fast::cuda
