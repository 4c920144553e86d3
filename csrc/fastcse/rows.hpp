// Row-wise work, one pass over memory each: norms, the positive's similarity, and the last steps of the gradients.
#pragma once
#include <cmath>

#include "parallel.hpp"
#include "tile.hpp"
#include "vec.hpp"

namespace FASTCSE_ISA {

using fastcse::OpenRows;
using fastcse::PullRows;
using fastcse::StepRows;

/// <a, b> over `d` entries, in a fixed order: four vectors of partial sums, then the lanes.
inline float dot(const float* a, const float* b, int64_t d) {
    f32v part[4] = {};
    int64_t k = 0;
    for (; k + 4 * W <= d; k += 4 * W)
        for (int u = 0; u < 4; ++u) part[u] += load(a + k + u * W) * load(b + k + u * W);
    for (; k + W <= d; k += W) part[0] += load(a + k) * load(b + k);
    float total = sum((part[0] + part[1]) + (part[2] + part[3]));
    for (; k < d; ++k) total += a[k] * b[k];
    return total;
}

/// out += x * factor
inline void add_scaled(float* out, const float* x, float factor, int64_t d) {
    int64_t k = 0;
    for (; k + W <= d; k += W) store(out + k, load(out + k) + load(x + k) * factor);
    for (; k < d; ++k) out[k] += x[k] * factor;
}

/// Rows in blocks of this many go to one thread.
constexpr int64_t row_block = 64;

template <class Fn>
void for_rows(int64_t n, int64_t d, int threads, Fn&& fn) {
    const auto block = [&](int64_t b) {
        const int64_t end = b * row_block + row_block < n ? b * row_block + row_block : n;
        for (int64_t i = b * row_block; i < end; ++i) fn(i);
    };
    fastcse::parallel_for((n + row_block - 1) / row_block, n * d < 65536 ? 1 : threads, block);
}

inline double dot_in_double(const float* a, const float* b, int64_t d) {
    double total = 0;
    for (int64_t k = 0; k < d; ++k) total += static_cast<double>(a[k]) * b[k];
    return total;
}

/// Squares of entries below 1e-19 or above 1e19 leave the range of a float: such rows are measured in double.
inline bool out_of_range(float square) { return square < 1e-30f || std::isinf(square); }

inline float norm(const float* x, int64_t d) {
    const float square = dot(x, x, d);
    return out_of_range(square) ? static_cast<float>(std::sqrt(dot_in_double(x, x, d))) : std::sqrt(square);
}

/// scale_i = 1 / |x_i|; 0 for a row shorter than `shortest`, whose similarity and gradient are then 0.
inline void inverse_norms(const float* x, int64_t stride, int64_t n, int64_t d, float shortest, float* scale,
                          int threads) {
    for_rows(n, d, threads, [=](int64_t i) {
        const float length = norm(x + i * stride, d);
        scale[i] = length < shortest ? 0 : 1 / length;
    });
}

template <class Transform>
void open_rows(const OpenRows& r, int threads) {
    for_rows(r.n, r.d, threads, [&r](int64_t i) {
        const float s =
            dot(r.a + i * r.a_stride, r.c + r.index[i] * r.c_stride, r.d) * (r.a_scale[i] * r.c_scale[r.index[i]]);
        const float x = Transform::f_positive(s, r.margin) * r.inv_temperature;
        const float ceiling = r.ceiling ? r.ceiling[i] : r.ceiling_value;
        r.similarity[i] = s;
        r.logit[i] = x;
        r.shift[i] = (x < ceiling ? ceiling : x) + r.offset;
    });
}

/// The rows after the sweep: t = log(Zneg) + shift - logit; loss = log(1 + e^t), share = 1 / (1 + e^-t), inverse = 1 /
/// Z.
inline void close_rows(const float* sum, const float* shift, const float* logit, int64_t n, float* loss, float* share,
                       float* inverse) {
    for (int64_t i = 0; i < n; ++i) {
        const float t = std::log(sum[i]) + (shift[i] - logit[i]);
        const float small = std::exp(-std::fabs(t));
        loss[i] = (t > 0 ? t : 0) + std::log1p(small);
        share[i] = (t > 0 ? 1 : small) / (1 + small);
        inverse[i] = 1 / (sum[i] + std::exp(logit[i] - shift[i]));
    }
}

template <class Transform>
void pull_rows(const PullRows& r) {
    for (int64_t i = 0; i < r.n; ++i) {
        const float s = r.similarity[i], inverse = r.inverse ? r.inverse[i] : 1.0f;
        const float row = r.a_scale[i] * r.inv_temperature;
        r.factor[i] = row * inverse;
        r.pull[i] = r.share[i] * Transform::df_positive(s, r.margin) * row * r.c_scale[r.index[i]];
        r.d_inv_temperature[i] = r.f_sum[i] * inverse - r.share[i] * Transform::f_positive(s, r.margin);
    }
}

/// g_i <- factor_i g_i - pull_i c_{index_i}, then without its part along x_i if `scale` is given (the gradient through
/// x / |x|). `index` null: no pull. `factor` null: 1.
inline void finish_rows(float* g, int64_t n, int64_t d, const float* factor, const float* pull, const float* c,
                        int64_t c_stride, const int64_t* index, const float* x, int64_t x_stride, const float* scale,
                        int threads) {
    for_rows(n, d, threads, [=](int64_t i) {
        float* row = g + i * d;
        if (factor)
            for (int64_t k = 0; k < d; ++k) row[k] *= factor[i];
        if (index) add_scaled(row, c + index[i] * c_stride, -pull[i], d);
        if (scale) {
            const float* along = x + i * x_stride;
            add_scaled(row, along, -dot(row, along, d) * scale[i] * scale[i], d);
        }
    });
}

/// g_{index_i} -= pull_i a_i. In row order on one thread when an index repeats, so that the sum has one order.
inline void scatter_rows(float* g, int64_t d, const float* a, int64_t a_stride, const float* pull, const int64_t* index,
                         int64_t n, bool distinct, int threads) {
    for_rows(n, d, distinct ? threads : 1,
             [=](int64_t i) { add_scaled(g + index[i] * d, a + i * a_stride, -pull[i], d); });
}

/// out_i = base_i + radius_i v_i, with v the direction, the direction to length 1, or its signs to length 1.
inline void step_rows(const StepRows& r, int threads) {
    for_rows(r.n, r.d, threads, [&r](int64_t i) {
        const float *base = r.base + i * r.base_stride, *direction = r.direction + i * r.direction_stride;
        float* out = r.out + i * r.d;
        const float radius = r.radius ? r.radius[i] : r.radius_value;
        if (r.kind == fastcse::Step::sign) {
            const float by = radius / std::sqrt(static_cast<float>(r.d));
            // A NaN is no sign: it fails both comparisons, and is added as it is.
            for (int64_t k = 0; k < r.d; ++k)
                out[k] = base[k] + (direction[k] > 0 ? by : direction[k] < 0 ? -by : direction[k]);
            return;
        }
        float by = radius;
        if (r.kind == fastcse::Step::l2) {
            const float length = norm(direction, r.d);
            by = length == 0 ? 0 : radius / length;
        }
        int64_t k = 0;
        for (; k + W <= r.d; k += W) store(out + k, load(base + k) + load(direction + k) * by);
        for (; k < r.d; ++k) out[k] = base[k] + direction[k] * by;
    });
}

}  // namespace FASTCSE_ISA
