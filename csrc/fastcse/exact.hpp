// Sums over rows in double: scores that decide, lengths, and what rougher numbers take off.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "parallel.hpp"
#include "tile.hpp"

namespace FASTCSE_ISA {

inline double as_double(float x) { return x; }
inline double as_double(fastcse::bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
inline double as_double(fastcse::float16 x) {
    const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    // Exponent and fraction moved to a float's places are 2^112 too small, also where they are subnormal.
    const uint32_t bits = rest << 13, special = 0x7f800000u | bits;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    out *= 5.192296858534828e33f;
    if (rest >= 0x7c00u) std::memcpy(&out, &special, sizeof out);
    return sign ? -out : out;
}

/// <a, c>, or |a - c|^2 if `distance`, in double and in a fixed order: equal rows have equal scores.
template <class Element>
double exact_sum(const float* a, const Element* c, int64_t d, bool distance) {
    constexpr int lanes = 16;
    double part[lanes] = {}, total = 0;
    int64_t k = 0;
    if (distance) {
        for (; k + lanes <= d; k += lanes)
            for (int u = 0; u < lanes; ++u)
                part[u] += (a[k + u] - as_double(c[k + u])) * (a[k + u] - as_double(c[k + u]));
        for (; k < d; ++k) total += (a[k] - as_double(c[k])) * (a[k] - as_double(c[k]));
    } else {
        for (; k + lanes <= d; k += lanes)
            for (int u = 0; u < lanes; ++u) part[u] += a[k + u] * as_double(c[k + u]);
        for (; k < d; ++k) total += a[k] * as_double(c[k]);
    }
    for (int u = 0; u < lanes; ++u) total += part[u];
    return total;
}

/// What rounding to bfloat16, to nearest even, takes off.
inline float bfloat16_rest(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    float rounded;
    std::memcpy(&rounded, &bits, sizeof rounded);
    return x - rounded;
}

/// length_i = |x_i| and, if `cut`, cut_i = the length of what bfloat16 takes off the row; in double, one pass.
inline void measure_rows(const float* x, int64_t stride, int64_t n, int64_t d, double* length, double* cut,
                         int threads) {
    constexpr int lanes = 16;
    constexpr int64_t at_once = 64;
    fastcse::parallel_for((n + at_once - 1) / at_once, n * d < 65536 ? 1 : threads, [=](int64_t block) {
        for (int64_t i = block * at_once; i < std::min(n, (block + 1) * at_once); ++i) {
            const float* row = x + i * stride;
            double square[lanes] = {}, rest[lanes] = {};
            const auto add = [&](int64_t k, int u) {
                square[u] += static_cast<double>(row[k]) * row[k];
                if (cut) {
                    const double r = bfloat16_rest(row[k]);
                    rest[u] += r * r;
                }
            };
            int64_t k = 0;
            for (; k + lanes <= d; k += lanes)
                for (int u = 0; u < lanes; ++u) add(k + u, u);
            for (; k < d; ++k) add(k, 0);
            double total = 0, total_rest = 0;
            for (int u = 0; u < lanes; ++u) total += square[u], total_rest += rest[u];
            length[i] = std::sqrt(total);
            if (cut) cut[i] = std::sqrt(total_rest);
        }
    });
}

}  // namespace FASTCSE_ISA
