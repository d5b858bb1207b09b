// y = act(norm(x) W^T + bias) + residual by Strassen's products (7 instead of 8 of half the size, `level` times over), float32.
// In: x [rows, in] and a weight packed by strassen_pack. Out: y [rows, out]. Next on the way: csrc/torch/linear.cpp.
//
// Rows of x and of W are brought to largest magnitudes in [1, 2) by powers of two, so the sums of blocks neither overflow
// nor drown a small row beside a large one; rows that are not finite take part in no sum and get plain dot products.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

constexpr int kStrassenRows = 6;      // rows of a register tile, at most
constexpr int kStrassenMaxLevel = 2;  // at 3 the sums cost what the products save (depth 64 at in = 512)
constexpr int64_t kStrassenChunk = 48;  // rows of a block: the operands and results of a chunk of blocks stay in L2
constexpr int64_t kStrassenGrain = 16;  // in and out must be multiples of this << level

struct StrassenTerm {
  int32_t block;  // row * (1 << level) + column of the block
  float sign;
  bool first, last;  // of a result block: the term that sets it, the term after which it is complete
};

struct StrassenProduct {  // (sum of blocks of x) (sum of blocks of W^T), added to blocks of y
  StrassenTerm x[4], w[4], y[4];
  int32_t nx, nw, ny;
};

const StrassenProduct* strassen_products(int level);
constexpr int64_t strassen_count(int level) { return level == 0 ? 1 : 7 * strassen_count(level - 1); }

struct StrassenPack {
  const float* weight;  // [out, in]
  const float* column;  // [out] powers of two, see strassen_column
  float* packed;        // [products, in / blocks, out / blocks] in panels of columns
  int64_t in, out;
  int level;
};

enum class StrassenAct : int32_t { none, relu, gelu };

struct StrassenLinear {
  const float* x;         // [rows, in]
  const float* weight;    // [out, in], for rows that are not finite
  const float* packed;    // see above
  const float* column;    // [out] what the columns of the packed product are to be multiplied by
  const float* bias;      // [out] or null
  const float* residual;  // [rows, out] or null (null if split > 1)
  float* y;               // [split, rows, out / split]
  int64_t rows, in, out, split;
  float norm_eps;  // >= 0: rows are normalised first (LayerNorm without weight and bias)
  int level;
  StrassenAct act;

  int64_t grid() const { return int64_t(1) << level; }
  int64_t units() const { return (rows + grid() - 1) / grid(); }  // one row of every block
};

// One task: one product (pack), one unit of 1 << level rows (linear; neighbours are taken together in chunks).
void strassen_column(const StrassenPack& p, float* column);
int64_t strassen_pack_scratch(const StrassenPack& p);  // floats per worker
void strassen_pack(const StrassenPack& p, int64_t begin, int64_t end, float* scratch);
int64_t strassen_linear_scratch(const StrassenLinear& p, int64_t units);  // floats per worker of so many units
void strassen_linear(const StrassenLinear& p, int64_t begin, int64_t end, float* scratch);

void strassen_pack_avx2(const StrassenPack& p, int64_t begin, int64_t end, float* scratch);
void strassen_pack_avx512(const StrassenPack& p, int64_t begin, int64_t end, float* scratch);
void strassen_linear_avx2(const StrassenLinear& p, int64_t begin, int64_t end, float* scratch);
void strassen_linear_avx512(const StrassenLinear& p, int64_t begin, int64_t end, float* scratch);

}  // namespace tore_fast::cpu
