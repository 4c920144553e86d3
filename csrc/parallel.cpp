#include "fastcse/parallel.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace fastcse {
namespace {

struct Work {
    std::atomic<int64_t> next;
    int64_t count;
    void (*fn)(const void*, int64_t);
    const void* data;

    void run() {
        for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) fn(data, i);
    }
};

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// torch's own OpenMP runtime is looked up by name instead of linked. A second runtime would start a second pool, whose
// threads fight with the first one's for the cores (its idle threads spin for a while after each matrix product), and
// two runtimes in one process are a known cause of crashes (faiss #3401, pytorch #149201). Without torch's runtime
// plain threads do the work.
GompParallel torch_pool() {
    static const auto found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

}  // namespace

void run_parallel(int64_t count, int threads, void (*fn)(const void*, int64_t), const void* data) {
    threads = static_cast<int>(std::min<int64_t>(threads, count));
    Work work{{0}, count, fn, data};
    if (threads <= 1) return work.run();
    if (const auto pool = torch_pool())
        return pool([](void* shared) { static_cast<Work*>(shared)->run(); }, &work, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> extra;
    for (int t = 1; t < threads; ++t) extra.emplace_back([&work] { work.run(); });
    work.run();
    for (auto& thread : extra) thread.join();
}

}  // namespace fastcse
