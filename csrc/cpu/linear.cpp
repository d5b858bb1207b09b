#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "simd.h"
#include "linear_kernel.h"

namespace tore_fast::cpu {
namespace {

using Terms = std::vector<StrassenTerm>;
struct Row {
  Terms x, w, y;
};

// Strassen's seven products; blocks 0 1 / 2 3 of x, of W^T and of y.
const std::vector<Row>& one_level() {
  static const std::vector<Row> rows = {
      {{{0, 1}, {3, 1}}, {{0, 1}, {3, 1}}, {{0, 1}, {3, 1}}},
      {{{0, 1}}, {{1, 1}, {3, -1}}, {{1, 1}, {3, 1}}},
      {{{2, 1}, {3, 1}}, {{0, 1}}, {{2, 1}, {3, -1}}},
      {{{3, 1}}, {{2, 1}, {0, -1}}, {{0, 1}, {2, 1}}},
      {{{0, 1}, {1, 1}}, {{3, 1}}, {{0, -1}, {1, 1}}},
      {{{2, 1}, {0, -1}}, {{0, 1}, {1, 1}}, {{3, 1}}},
      {{{1, 1}, {3, -1}}, {{2, 1}, {3, 1}}, {{0, 1}}},
  };
  return rows;
}

// Terms of the blocks of blocks: `inner` numbers a grid x grid division of every block of `outer`.
Terms nested(const Terms& outer, const Terms& inner, int grid) {
  Terms out;
  for (const auto& o : outer) {
    for (const auto& i : inner) {
      const int row = o.block / 2 * grid + i.block / grid, column = o.block % 2 * grid + i.block % grid;
      out.push_back({row * 2 * grid + column, o.sign * i.sign, false, false});
    }
  }
  return out;
}

std::vector<StrassenProduct> products_of(int level) {
  std::vector<Row> rows = {{{{0, 1}}, {{0, 1}}, {{0, 1}}}};
  for (int l = 0, grid = 1; l < level; ++l, grid *= 2) {
    std::vector<Row> deeper;
    for (const auto& outer : one_level())
      for (const auto& inner : rows)
        deeper.push_back({nested(outer.x, inner.x, grid), nested(outer.w, inner.w, grid), nested(outer.y, inner.y, grid)});
    rows = deeper;
  }
  std::vector<StrassenTerm*> latest(size_t(1) << (2 * level), nullptr);
  for (auto& row : rows) {
    for (auto& term : row.y) {
      term.first = latest[term.block] == nullptr;
      latest[term.block] = &term;
    }
  }
  for (auto* term : latest) term->last = true;
  std::vector<StrassenProduct> out;
  for (const auto& row : rows) {
    StrassenProduct p{};
    std::copy(row.x.begin(), row.x.end(), p.x);
    std::copy(row.w.begin(), row.w.end(), p.w);
    std::copy(row.y.begin(), row.y.end(), p.y);
    p.nx = int32_t(row.x.size()), p.nw = int32_t(row.w.size()), p.ny = int32_t(row.y.size());
    out.push_back(p);
  }
  return out;
}

}  // namespace

const StrassenProduct* strassen_products(int level) {
  static const std::vector<StrassenProduct> table[] = {products_of(0), products_of(1), products_of(2)};
  return table[level].data();
}

void strassen_column(const StrassenPack& p, float* column) {
  for (int64_t n = 0; n < p.out; ++n) {
    float largest = 0.f;
    for (int64_t k = 0; k < p.in; ++k) largest = std::max(largest, std::fabs(p.weight[n * p.in + k]));
    column[n] = power_of_two(largest);
  }
}

int64_t strassen_pack_scratch(const StrassenPack& p) { return 64 * (p.in >> p.level); }

void strassen_pack(const StrassenPack& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD_WIDE(strassen_pack, p, begin, end, scratch);
  for (int64_t i = begin; i < end; ++i) pack_product(p, i, scratch);
}

int64_t strassen_linear_scratch(const StrassenLinear& p, int64_t units) { return linear_scratch(p, units); }

void strassen_linear(const StrassenLinear& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD_WIDE(strassen_linear, p, begin, end, scratch);
  linear_units(p, begin, end, scratch);
}

}  // namespace tore_fast::cpu
