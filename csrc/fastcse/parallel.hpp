// Runs a loop on several threads, on the pool that torch already keeps warm where there is one.
#pragma once
#include <cstdint>

namespace fastcse {

/// Calls `fn(data, i)` for i in [0, count) on at most `threads` threads. Which thread takes which i is not fixed: `fn`
/// may not depend on it.
void run_parallel(int64_t count, int threads, void (*fn)(const void* data, int64_t i), const void* data);

template <class Fn>
void parallel_for(int64_t count, int threads, const Fn& fn) {
    run_parallel(count, threads, [](const void* data, int64_t i) { (*static_cast<const Fn*>(data))(i); }, &fn);
}

}  // namespace fastcse
