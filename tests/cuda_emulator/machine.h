// The machine of the emulator: every CUDA thread is a coroutine, barriers and warp operations switch between them. The
// blocks of a cluster run together, clusters one after another. What it is strict about:
// - order: threads are shuffled at every barrier; blocks go forward (seed 0), backward (odd) or shuffled (even)
// - shared memory: static and dynamic are full of 0xff (NaN) when a block starts and again when it ends; dynamic memory
//   ends at an unreadable page; 48 KB without cudaFuncSetAttribute, the device's limit with it
// - a warp operation that not all 32 lanes reach, a barrier that some thread never reaches: abort
// - grids and blocks outside the hardware's limits: the launch is refused with an error, as a GPU does
// What it does not see: races that need two threads of one phase to interleave, memory ordering between blocks.
#pragma once
#include <dlfcn.h>
#include <elf.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchOutOfResources = 701
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline int64_t shared_limit = 99 * 1024;  // bytes, as cudaDeviceGetAttribute reports
inline unsigned seed = 0;
inline int launches = 0;
inline cudaError_t last_error = cudaSuccess;
inline std::unordered_map<const void*, int64_t> allowed_shared;  // cudaFuncSetAttribute

constexpr int64_t kDefaultShared = 48 * 1024;
constexpr size_t kStack = 64 * 1024;

// Memory that ends at an unreadable page and starts behind one; 16-byte aligned, the slack is checked by `intact`.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : size_(bytes), room_((bytes + 15) / 16 * 16) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    inside_ = (room_ + page - 1) / page * page;
    all_ = inside_ + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, all_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED || (inside_ && mprotect(base_ + page, inside_, PROT_READ | PROT_WRITE))) std::abort();
    data_ = base_ + page + inside_ - room_;
    std::memset(base_ + page, 0xff, inside_);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, all_); }
  char* data() const { return data_; }
  int64_t size() const { return size_; }
  // Nobody wrote before the data or between their end and the guard page.
  bool intact() const {
    const auto clean = [](const char* from, const char* to) {
      return std::all_of(from, to, [](char c) { return c == char(0xff); });
    };
    return clean(std::max(data_ - 64, data_ + room_ - inside_), data_) && clean(data_ + size_, data_ + room_);
  }

 private:
  char *base_, *data_;
  int64_t size_, room_, inside_, all_;
};

// Where a kernel's static shared variables lie: __shared__ is `static`, and the symbols of a function's statics begin with
// the function's own name. Read once from the symbol table of the library itself, file by file (kernels of anonymous
// namespaces have the same name in several).
struct Span {
  char* at;
  size_t size;
};

inline const std::vector<Span>& statics_of(const void* kernel) {
  static const auto* table = [] {
    auto* found = new std::unordered_map<const void*, std::vector<Span>>;
    Dl_info info;
    static int anchor;
    dladdr(&anchor, &info);
    std::ifstream file(info.dli_fname, std::ios::binary);
    const std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const char* base = static_cast<const char*>(info.dli_fbase);
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image.data());
    if (header->e_type == ET_EXEC) base = nullptr;
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image.data() + header->e_shoff);
    for (int s = 0; s < header->e_shnum; ++s) {
      if (sections[s].sh_type != SHT_SYMTAB) continue;
      const char* names = image.data() + sections[sections[s].sh_link].sh_offset;
      const auto* symbol = reinterpret_cast<const Elf64_Sym*>(image.data() + sections[s].sh_offset);
      const auto* end = symbol + sections[s].sh_size / sizeof(Elf64_Sym);
      while (symbol != end) {
        std::map<std::string, const void*> functions;  // of one source file
        std::vector<const Elf64_Sym*> objects;
        do {
          const char* name = names + symbol->st_name;
          if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_size) functions[name] = base + symbol->st_value;
          if (ELF64_ST_TYPE(symbol->st_info) == STT_OBJECT && !std::strncmp(name, "_ZZ", 3)) objects.push_back(symbol);
          ++symbol;
        } while (symbol != end && ELF64_ST_TYPE(symbol->st_info) != STT_FILE);
        for (const Elf64_Sym* object : objects) {
          const std::string name = names + object->st_name;  // _ZZ <function without _Z> E <variable>
          if (name.find("kernel") == std::string::npos) continue;
          for (size_t cut = name.rfind('E'); cut != std::string::npos && cut > 3; cut = name.rfind('E', cut - 1)) {
            const auto at = functions.find("_Z" + name.substr(3, cut - 3));
            if (at == functions.end()) continue;
            (*found)[at->second].push_back({const_cast<char*>(base) + object->st_value, size_t(object->st_size)});
            break;
          }
        }
      }
    }
    return found;
  }();
  static const std::vector<Span> none;
  const auto at = table->find(kernel);
  return at == table->end() ? none : at->second;
}

enum class State { kReady, kBlock, kNamed, kWarp, kCluster, kDone };

struct Copy {  // cp.async under way
  void* to;
  const void* from;
  int bytes, filled;
  int group;
};

// A coroutine starts by setcontext; from then on _setjmp/_longjmp switch, which make no system call. It lives on and runs
// the body again for the next block.
struct Thread {
  ucontext_t context;
  jmp_buf at;
  bool started = false;
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  int barrier = 0, expected = 0;  // of kNamed
  char slot[64];                  // what a lane hands to its warp
  std::vector<Copy> copies;
  int groups = 0;
};

struct Block {
  dim3 index;
  unsigned rank = 0;
  std::unique_ptr<Guarded> dynamic;
  std::vector<std::vector<char>> statics;  // of a block that is not running
};

inline std::vector<std::unique_ptr<Thread>> threads;  // of the cluster's blocks, one after another
inline std::vector<Block> blocks;
inline std::vector<Span> statics;
inline unsigned block_threads = 1, current = 0, live = 0;
inline jmp_buf scheduler;
inline const std::function<void()>* body;

inline Thread& self() { return *threads[current]; }
inline unsigned own_rank() { return current / block_threads; }

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::abort();
}

inline void wait(State state) {
  self().state = state;
  if (_setjmp(self().at) == 0) _longjmp(scheduler, 1);
}

inline void entry() {
  for (;;) {
    (*body)();
    if (!self().copies.empty()) fail("a thread ends before its cp.async are waited for");
    wait(State::kDone);
  }
}

// Brings a block's static shared memory to where its kernel looks for it.
inline void switch_to(unsigned block) {
  if (block == live) return;
  for (size_t i = 0; i < statics.size(); ++i) {
    std::memcpy(blocks[live].statics[i].data(), statics[i].at, statics[i].size);
    std::memcpy(statics[i].at, blocks[block].statics[i].data(), statics[i].size);
  }
  live = block;
}

inline void resume(unsigned t) {
  current = t;
  const unsigned block = t / block_threads;
  switch_to(block);
  threadIdx = dim3(t % block_threads, 0, 0);
  blockIdx = blocks[block].index;
  if (_setjmp(scheduler) != 0) return;
  Thread& thread = *threads[t];
  if (thread.started) _longjmp(thread.at, 1);
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, entry, 0);
  setcontext(&thread.context);
}

// Lets those go on whose barrier is complete; false if nobody can.
inline bool release(unsigned count) {
  bool any = false;
  const auto ready = [&](Thread& t) { t.state = State::kReady, any = true; };
  bool cluster = true;
  for (unsigned first = 0; first < count; first += block_threads) {
    const unsigned end = first + block_threads;
    for (unsigned w = first; w < end; w += 32) {
      unsigned waiting = 0;
      for (unsigned t = w; t < std::min(w + 32, end); ++t) waiting += threads[t]->state == State::kWarp;
      if (waiting == 32)
        for (unsigned t = w; t < w + 32; ++t) ready(*threads[t]);
    }
    std::map<int, std::vector<unsigned>> named;
    unsigned block = 0, done = 0;
    for (unsigned t = first; t < end; ++t) {
      const State state = threads[t]->state;
      block += state == State::kBlock;
      done += state == State::kDone;
      cluster = cluster && state == State::kCluster;
      if (state == State::kNamed) named[threads[t]->barrier].push_back(t);
    }
    if (block > 0 && block + done == block_threads)
      for (unsigned t = first; t < end; ++t)
        if (threads[t]->state == State::kBlock) ready(*threads[t]);
    for (auto& [id, list] : named)
      if (int(list.size()) == threads[list[0]]->expected)
        for (unsigned t : list) ready(*threads[t]);
  }
  if (cluster)
    for (unsigned t = 0; t < count; ++t) ready(*threads[t]);
  return any;
}

inline void poison(unsigned block) {
  Block& b = blocks[block];
  std::memset(b.dynamic->data(), 0xff, b.dynamic->size());
  for (size_t i = 0; i < statics.size(); ++i)
    std::memset(block == live ? statics[i].at : b.statics[i].data(), 0xff, statics[i].size);
}

inline void run_cluster(const std::function<void()>& kernel, std::mt19937& random) {
  body = &kernel;
  const unsigned count = unsigned(blocks.size()) * block_threads;
  std::vector<unsigned> order(count);
  for (unsigned t = 0; t < count; ++t) order[t] = t, threads[t]->state = State::kReady, threads[t]->groups = 0;
  live = 0;
  for (unsigned b = 0; b < blocks.size(); ++b) poison(b);
  std::vector<bool> over(blocks.size(), false);
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    for (unsigned t : order)
      if (threads[t]->state == State::kReady) resume(t);
    bool done = true;
    for (unsigned b = 0; b < blocks.size(); ++b) {
      bool ended = true;
      for (unsigned t = b * block_threads; t < (b + 1) * block_threads; ++t) ended &= threads[t]->state == State::kDone;
      if (ended && !over[b]) {  // its shared memory is gone: nobody may still read it
        if (!blocks[b].dynamic->intact()) fail("a write beside dynamic shared memory");
        poison(b), over[b] = true;
      }
      done &= ended;
    }
    if (done) return;
    if (!release(count)) fail("threads wait for each other at different barriers");
  }
}

inline cudaError_t refuse(cudaError_t error, const char* why) {
  std::fprintf(stderr, "CUDA emulator: launch refused: %s\n", why);
  return last_error = error;
}

// What a GPU would say to this launch.
inline cudaError_t check_launch(const void* kernel, dim3 grid, unsigned cluster, unsigned block, int64_t bytes) {
  if (block == 0 || block > 1024) return refuse(cudaErrorInvalidConfiguration, "threads of a block: 1 to 1024");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return refuse(cudaErrorInvalidConfiguration, "a grid without blocks");
  if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    return refuse(cudaErrorInvalidConfiguration, "a grid beyond 2^31 - 1, 65535, 65535 blocks");
  if (cluster == 0 || cluster > 8 || grid.x % cluster)
    return refuse(cudaErrorInvalidConfiguration, "clusters have 1 to 8 blocks and divide the grid");
  int64_t fixed = 0;
  for (const Span& s : statics_of(kernel)) fixed += int64_t(s.size);
  if (fixed > kDefaultShared) return refuse(cudaErrorInvalidValue, "more than 48 KB of static shared memory");
  const auto at = allowed_shared.find(kernel);
  const int64_t allowed = at == allowed_shared.end() ? 0 : at->second;
  if (fixed + bytes > shared_limit || (fixed + bytes > kDefaultShared && bytes > allowed))
    return refuse(cudaErrorInvalidValue, "more dynamic shared memory than cudaFuncSetAttribute allows");
  return cudaSuccess;
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, unsigned cluster, unsigned block, int64_t bytes,
                   const Args&... args) {
  const void* address = reinterpret_cast<const void*>(kernel);
  const cudaError_t refused = check_launch(address, grid, cluster, block, bytes);
  if (refused != cudaSuccess) return refused;
  ++launches;
  gridDim = grid;
  blockDim = dim3(block);
  block_threads = block;
  statics = statics_of(address);
  while (threads.size() < size_t(cluster) * block) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->stack.reset(new char[kStack]);
  }
  blocks.clear();
  blocks.resize(cluster);
  for (unsigned b = 0; b < cluster; ++b) {
    blocks[b].rank = b;
    blocks[b].dynamic = std::make_unique<Guarded>(bytes);
    for (const Span& s : statics) blocks[b].statics.emplace_back(s.size);
  }
  std::mt19937 random(seed);
  const size_t clusters = size_t(grid.x) / cluster * grid.y * grid.z;
  std::vector<uint32_t> order(clusters);
  for (size_t c = 0; c < clusters; ++c) order[c] = uint32_t(seed % 2 ? clusters - 1 - c : c);
  if (seed && seed % 2 == 0) std::shuffle(order.begin(), order.end(), random);
  const std::function<void()> work = [&] { kernel(args...); };
  for (const uint32_t c : order) {
    const unsigned row = grid.x / cluster;
    for (unsigned b = 0; b < cluster; ++b) blocks[b].index = dim3(c % row * cluster + b, c / row % grid.y, c / row / grid.y);
    run_cluster(work, random);
  }
  return cudaSuccess;
}

inline void* dynamic() { return blocks[own_rank()].dynamic->data(); }

// Whether `bytes` at `p` are shared memory of the running block.
inline bool in_shared(const void* p, size_t bytes) {
  const char* at = static_cast<const char*>(p);
  const auto inside = [&](const char* from, size_t size) { return at >= from && at + bytes <= from + size; };
  const Guarded& d = *blocks[own_rank()].dynamic;
  if (inside(d.data(), size_t(d.size()))) return true;
  return std::any_of(statics.begin(), statics.end(), [&](const Span& s) { return inside(s.at, s.size); });
}

// The same place in the shared memory of another block of the cluster.
inline void* map_shared(void* p, unsigned rank) {
  if (rank >= blocks.size()) fail("cluster_map: no such block");
  if (rank == own_rank()) return p;
  char* at = static_cast<char*>(p);
  const Guarded& mine = *blocks[own_rank()].dynamic;
  if (at >= mine.data() && at < mine.data() + mine.size()) return blocks[rank].dynamic->data() + (at - mine.data());
  for (size_t i = 0; i < statics.size(); ++i)
    if (at >= statics[i].at && at < statics[i].at + statics[i].size) return blocks[rank].statics[i].data() + (at - statics[i].at);
  fail("cluster_map: not shared memory");
}

// Every lane puts `value` in, gets what `pick` makes of the warp's 32 values.
template <typename T, typename Pick>
auto exchange(unsigned mask, T value, Pick pick) {
  if (mask != 0xffffffffu) fail("only full-mask warp operations are emulated");
  const unsigned lane = threadIdx.x % 32, warp = current - lane;
  static_assert(sizeof(T) <= sizeof(Thread::slot));
  std::memcpy(self().slot, &value, sizeof value);
  wait(State::kWarp);
  T all[32];
  for (unsigned l = 0; l < 32; ++l) std::memcpy(&all[l], threads[warp + l]->slot, sizeof(T));
  const auto result = pick(all, lane);
  wait(State::kWarp);
  return result;
}

}  // namespace emulator
