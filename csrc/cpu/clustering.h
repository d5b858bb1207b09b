// What the three clustering steps share on the host: arguments, packing into panels, sorting by a float key.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "pairwise.h"

namespace tore_fast::cpu {

// Calls task(0) .. task(count - 1), in parallel; comes from the binding, so that no thread pool is named
// here.
struct Parallel {
  std::function<void(int64_t count, const std::function<void(int64_t)>& task)> run;
  int64_t threads;

  // In how many shares one image is cut: none where whole images keep all threads busy.
  int64_t shares(int64_t batch) const { return batch % threads == 0 || batch >= 4 * threads ? 1 : threads; }

  // task(b, shares of image b in parallel or one after the other): whole images in parallel where that keeps all
  // threads busy, else image after image with its shares in parallel.
  using Image = std::function<void(int64_t b, const Parallel& within)>;
  void images(int64_t batch, const Image& task) const {
    if (shares(batch) == 1) {
      const Parallel alone{[](int64_t count, const std::function<void(int64_t)>& piece) {
                             for (int64_t i = 0; i < count; ++i) piece(i);
                           },
                           1};
      run(batch, [&](int64_t b) { task(b, alone); });
    } else {
      for (int64_t b = 0; b < batch; ++b) task(b, *this);
    }
  }
};

struct Tokens {
  const float* x;       // [batch, tokens, channels]
  const uint8_t* mask;  // [batch, tokens], non-zero = real token; or nullptr
  int64_t batch, tokens, channels;

  const float* image(int64_t b) const { return x + b * tokens * channels; }
  const uint8_t* image_mask(int64_t b) const { return mask ? mask + b * tokens : nullptr; }
  bool has_empty(int64_t b) const;
};

constexpr int64_t panels_of(int64_t tokens) { return (tokens + kPanel - 1) / kPanel; }

// Tokens ids[0..count) (all in order if ids == nullptr) of one image into panels; the last panel is filled up
// with copies of the last token. `out` holds panels_of(count) * channels * 16 floats.
Panels pack(const float* x, const int32_t* ids, int64_t count, int64_t channels, float* out,
            const Parallel& parallel);

// The first `count` of 0..n-1 by (key descending, index ascending); NaN counts as -inf.
void top_by_key(const float* key, int64_t n, int64_t count, int32_t* out);

// Distance that stands for "no denser token" per image: the largest D of the image, or, where the image has
// an empty token, of the batch + 1 (those columns hold that value in the official code). `largest` [batch]
// holds d2 maxima.
float largest_distance(const Tokens& t, const float* largest, int64_t b);

}  // namespace tore_fast::cpu
