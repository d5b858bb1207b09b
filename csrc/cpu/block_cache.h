// Memory for large results that comes back: blocks are kept when a tensor dies and given to the next one of about that size.
// Fresh pages cost 2 to 10 us each (an 8 MB result: 4 to 20 ms, as much as the product that fills it); glibc gives blocks
// above 32 MB back to the system at every free, and smaller ones whenever somebody frees a large block at the heap's end.
#pragma once
#include <cstddef>

namespace tore_fast::cpu {

constexpr size_t kBlock = size_t(2) << 20;  // sizes are rounded up to the processor's large page, which is asked for
constexpr size_t kSmallest = size_t(1) << 20;  // below, malloc is as good

void* take_block(size_t bytes);  // throws std::bad_alloc
void give_block(void* block);    // exactly what take_block returned

void* large_pages(size_t bytes);  // the same for memory that is not kept afterwards (std::free)

// Blocks that nobody uses: bytes, and how to give them all back to the system. At most TORE_FAST_CACHE_MB (environment,
// default 512) are kept.
size_t cached_bytes();
void release_blocks();

}  // namespace tore_fast::cpu
