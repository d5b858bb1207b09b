#include "block_cache.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace tore_fast::cpu {
namespace {

struct Cache {
  std::mutex lock;
  std::map<void*, size_t> size;               // of every block handed out or kept
  std::vector<std::pair<size_t, void*>> kept;  // oldest first
  size_t kept_bytes = 0;
};

// Never destroyed: tensors may die after static destructors have run. Locked across fork, so that a child (a data loader's
// worker) never inherits a lock that some other thread held.
Cache& cache() {
  static Cache* const it = [] {
#if defined(__linux__)
    pthread_atfork([] { cache().lock.lock(); }, [] { cache().lock.unlock(); }, [] { cache().lock.unlock(); });
#endif
    return new Cache;
  }();
  return *it;
}

size_t limit() {
  static const size_t bytes = [] {
    const char* wish = std::getenv("TORE_FAST_CACHE_MB");
    return (wish ? size_t(std::max(0L, std::atol(wish))) : size_t(512)) << 20;
  }();
  return bytes;
}

size_t rounded(size_t bytes) { return (bytes + kBlock - 1) / kBlock * kBlock; }

}  // namespace

void* large_pages(size_t bytes) {
  void* block = std::aligned_alloc(kBlock, rounded(bytes));
  if (block == nullptr) {
    release_blocks();
    block = std::aligned_alloc(kBlock, rounded(bytes));
    if (block == nullptr) throw std::bad_alloc();
  }
#if defined(__linux__)
  madvise(block, rounded(bytes), MADV_HUGEPAGE);
#endif
  return block;
}

void* take_block(size_t bytes) {
  const size_t size = rounded(bytes);
  Cache& c = cache();
  {
    const std::lock_guard<std::mutex> guard(c.lock);
    auto best = c.kept.end();
    for (auto i = c.kept.begin(); i != c.kept.end(); ++i)
      if (i->first >= size && i->first <= size + size / 2 && (best == c.kept.end() || i->first < best->first)) best = i;
    if (best != c.kept.end()) {
      void* block = best->second;
      c.kept_bytes -= best->first;
      c.kept.erase(best);
      return block;
    }
  }
  void* block = large_pages(size);
  const std::lock_guard<std::mutex> guard(c.lock);
  c.size[block] = size;
  return block;
}

void give_block(void* block) {
  Cache& c = cache();
  std::vector<void*> surplus;
  {
    const std::lock_guard<std::mutex> guard(c.lock);
    const size_t size = c.size.at(block);
    c.kept.emplace_back(size, block);
    c.kept_bytes += size;
    size_t drop = 0;
    for (; c.kept_bytes > limit(); ++drop) {
      c.kept_bytes -= c.kept[drop].first;
      c.size.erase(c.kept[drop].second);
      surplus.push_back(c.kept[drop].second);
    }
    c.kept.erase(c.kept.begin(), c.kept.begin() + drop);
  }
  for (void* p : surplus) std::free(p);
}

size_t cached_bytes() {
  Cache& c = cache();
  const std::lock_guard<std::mutex> guard(c.lock);
  return c.kept_bytes;
}

void release_blocks() {
  Cache& c = cache();
  std::vector<std::pair<size_t, void*>> kept;
  {
    const std::lock_guard<std::mutex> guard(c.lock);
    kept.swap(c.kept);
    c.kept_bytes = 0;
    for (const auto& block : kept) c.size.erase(block.second);
  }
  for (const auto& block : kept) std::free(block.second);
}

}  // namespace tore_fast::cpu
