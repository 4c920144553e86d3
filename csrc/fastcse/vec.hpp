// A vector of floats as wide as the instruction set of this translation unit, its root and its exponential.
//
// Every header that is compiled more than once (one time per instruction set) lives in the namespace FASTCSE_ISA, so
// that the linker cannot hand the AVX-512 copy of a template to a processor that only has AVX2.
#pragma once
#include <cstdint>
#include <cstring>

#include "tile.hpp"

namespace FASTCSE_ISA {

constexpr int W = FASTCSE_WIDTH;  // lanes
typedef float f32v __attribute__((vector_size(W * 4)));
typedef int32_t i32v __attribute__((vector_size(W * 4)));

inline f32v broadcast(float x) { return x - f32v{}; }
inline f32v load(const float* p) {
    f32v v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, f32v v) { std::memcpy(p, &v, sizeof v); }

inline f32v load(const fastcse::bfloat16* p) {
    typedef uint16_t u16v __attribute__((vector_size(W * 2)));
    u16v half;
    std::memcpy(&half, p, sizeof half);
    const i32v bits = __builtin_convertvector(half, i32v) << 16;
    f32v x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

/// The first `n` < W lanes of `p`, zeros behind them. Nothing behind them is read.
inline f32v load_first(const float* p, int n) {
    f32v v{};
    for (int k = 0; k < W - 1; ++k)
        if (k < n) v[k] = p[k];
    return v;
}
inline void store_first(float* p, f32v v, int n) {
    for (int k = 0; k < W - 1; ++k)
        if (k < n) p[k] = v[k];
}

/// Sum of the lanes in a fixed order, so that the same input gives the same bits.
inline float sum(f32v v) {
    float total = 0;
    for (int k = 0; k < W; ++k) total += v[k];
    return total;
}
inline float max(f32v v) {
    float best = v[0];
    for (int k = 1; k < W; ++k) best = v[k] > best ? v[k] : best;
    return best;
}

/// Square roots, rounded correctly. One instruction: the build sets -fno-math-errno, so that no lane calls the library.
inline f32v sqrt(f32v x) {
    for (int k = 0; k < W; ++k) x[k] = __builtin_sqrtf(x[k]);
    return x;
}

/// e^x to 2 ulp for x in [-87.3, 88.3]; 0 below, +inf above; NaN stays NaN.
inline f32v exp(f32v x) {
    const i32v underflows = x < -87.3f;
    // Written so that a NaN fails both comparisons and survives.
    x = x < -87.3f ? broadcast(-87.3f) : x;
    x = x > 88.8f ? broadcast(88.8f) : x;
    const float to_nearest = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const f32v shifted = x * 1.44269504f + to_nearest;
    const f32v n = shifted - to_nearest;
    // ln 2 in two parts (Cody and Waite), so that r keeps its digits.
    f32v r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    f32v p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    i32v bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    // The low bits of `shifted` are n; 2^n is n + 127 in the exponent field. 2^128 is written as inf, which is what the
    // caller wants to see.
    i32v scale_bits = ((bits - 0x4B400000) + 127) << 23;
    f32v scale;
    std::memcpy(&scale, &scale_bits, sizeof scale);
    return underflows ? f32v{} : p * scale;
}

}  // namespace FASTCSE_ISA
