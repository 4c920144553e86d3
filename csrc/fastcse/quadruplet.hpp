// The quadruplet hinge, forward and gradients in one pass over memory: a row's four vectors are read once, and are
// still in the first-level cache when its gradients are written.
#pragma once
#include <cmath>
#include <limits>

#include "rows.hpp"

namespace FASTCSE_ISA {

using fastcse::CandidateGradient;
using fastcse::Quadruplets;

/// One anchor (0) with its positive (1), batch negative (2) and corpus negative (3).
struct Quadruplet {
    const float* x[4];
    bool has_batch_negative;
    float scale[4];       ///< 1 / |x|, or 1; 0 for a zero row
    float similarity[3];  ///< of the anchor with x[1], x[2], x[3]
    float pull[3];        ///< derivative of the loss by each of them
};

/// The four squares and three products, in one walk over the rows.
inline void products(const float* const x[4], int64_t d, float square[4], float product[3]) {
    f32v squares[4] = {}, products[3] = {};
    int64_t k = 0;
    for (; k + W <= d; k += W) {
        const f32v v[4] = {load(x[0] + k), load(x[1] + k), load(x[2] + k), load(x[3] + k)};
        for (int r = 0; r < 4; ++r) squares[r] += v[r] * v[r];
        for (int r = 0; r < 3; ++r) products[r] += v[0] * v[r + 1];
    }
    for (int r = 0; r < 4; ++r) square[r] = sum(squares[r]);
    for (int r = 0; r < 3; ++r) product[r] = sum(products[r]);
    for (; k < d; ++k) {
        for (int r = 0; r < 4; ++r) square[r] += x[r][k] * x[r][k];
        for (int r = 0; r < 3; ++r) product[r] += x[0][k] * x[r + 1][k];
    }
}

inline void measure(const Quadruplets& q, Quadruplet& row) {
    float square[4], product[3];
    products(row.x, q.d, square, product);
    double scale[4] = {1, 1, 1, 1}, exact[3] = {product[0], product[1], product[2]};
    bool far = false;
    for (int r = 0; r < 4; ++r) far |= out_of_range(square[r]);
    if (far)
        for (int r = 0; r < 3; ++r) exact[r] = dot_in_double(row.x[0], row.x[r + 1], q.d);
    for (int r = 0; r < 4 && q.normalize; ++r) {
        const double norm = std::sqrt(far ? dot_in_double(row.x[r], row.x[r], q.d) : square[r]);
        scale[r] = norm < q.shortest ? 0 : 1 / norm;
    }
    for (int r = 0; r < 4; ++r) row.scale[r] = static_cast<float>(scale[r]);
    for (int r = 0; r < 3; ++r) row.similarity[r] = static_cast<float>(exact[r] * scale[0] * scale[r + 1]);
    // An infinite row is no row: without norms its products may be infinite, and a hinge would make 0 of them.
    for (float& s : row.similarity)
        if (std::isinf(s)) s = std::numeric_limits<float>::quiet_NaN();
    if (!row.has_batch_negative) row.similarity[1] = -std::numeric_limits<float>::infinity();
}

/// What a hinge makes of its argument; a NaN is kept.
inline float hinge(float x) { return x <= 0 ? 0 : x; }
inline float slope(float x) { return x <= 0 ? 0 : 1; }

inline float close(const Quadruplets& q, Quadruplet& row) {
    const float positive = row.similarity[0], batch = row.similarity[1], corpus = row.similarity[2];
    if (q.classic) {
        const float first = q.margins[0] + batch - positive, second = q.margins[1] + corpus - positive;
        row.pull[1] = slope(first);
        row.pull[2] = slope(second);
        row.pull[0] = -(row.pull[1] + row.pull[2]);
        return hinge(first) + hinge(second);
    }
    // A negative that is not there and has no weight is no term, where 0 * -inf would be NaN.
    const float weighted = !row.has_batch_negative && q.weights[0] == 0 ? 0 : q.weights[0] * batch;
    const float x = weighted + q.weights[1] * corpus - positive + q.margins[0];
    row.pull[0] = -slope(x);
    row.pull[1] = slope(x) * q.weights[0];
    row.pull[2] = slope(x) * q.weights[1];
    return hinge(x);
}

/// out = y (y_scale by) - x (x_scale along), with both rows brought to length 1 before they are multiplied further, so
/// that no factor leaves the range of a float.
inline void write_gradient(float* out, const float* y, float y_scale, float by, const float* x, float x_scale,
                           float along, int64_t d) {
    int64_t k = 0;
    for (; k + W <= d; k += W) store(out + k, load(y + k) * y_scale * by - load(x + k) * x_scale * along);
    for (; k < d; ++k) out[k] = y[k] * y_scale * by - x[k] * x_scale * along;
}

inline void write_anchor_gradient(float* out, const Quadruplet& row, const float by[4], int64_t d) {
    const float *a = row.x[0], *p = row.x[1], *b = row.x[2], *c = row.x[3], *s = row.scale;
    int64_t k = 0;
    for (; k + W <= d; k += W)
        store(out + k, load(p + k) * s[1] * by[1] + load(b + k) * s[2] * by[2] + load(c + k) * s[3] * by[3] -
                           load(a + k) * s[0] * by[0]);
    for (; k < d; ++k) out[k] = p[k] * s[1] * by[1] + b[k] * s[2] * by[2] + c[k] * s[3] * by[3] - a[k] * s[0] * by[0];
}

inline void differentiate(const Quadruplets& q, Quadruplet& row, int64_t i) {
    const float upstream = q.upstream ? q.upstream[i] * q.factor : q.factor;
    bool still = true;
    float along[3], by[4] = {};
    for (int r = 0; r < 3; ++r) {
        // No batch negative, no pull: its similarity of -inf may not be multiplied with 0.
        const bool absent = r == 1 && !row.has_batch_negative;
        row.pull[r] = absent ? 0 : row.pull[r] * upstream;
        along[r] = q.normalize && !absent ? row.pull[r] * row.similarity[r] : 0;
        by[r + 1] = row.pull[r] * row.scale[0];
        by[0] += along[r] * row.scale[0];
        still &= row.pull[r] == 0;
    }
    if (q.pull) {
        q.pull[i] = row.pull[1] * row.scale[0];
        q.pull[q.n + i] = along[1];
    }
    for (int r = 0; r < 4; ++r) {
        if (!q.gradients[r]) continue;
        float* out = q.gradients[r] + i * q.d;
        if (still)
            std::memset(out, 0, q.d * sizeof(float));
        else if (r == 0)
            write_anchor_gradient(out, row, by, q.d);
        else
            write_gradient(out, row.x[0], row.scale[0], row.pull[r - 1] * row.scale[r], row.x[r], row.scale[r],
                           along[r - 1] * row.scale[r], q.d);
    }
}

inline void quadruplets(const Quadruplets& q, int threads) {
    for_rows(q.n, q.d, threads, [&q](int64_t i) {
        Quadruplet row{};
        const int64_t batch = q.index ? q.index[i] : i;
        row.has_batch_negative = batch >= 0;
        for (int r = 0; r < 4; ++r) row.x[r] = q.rows[r] + (r == 2 ? batch : i) * q.strides[r];
        // One that is not there is read as the anchor: no other row may spoil this one's gradient with a NaN.
        if (!row.has_batch_negative) row.x[2] = row.x[0];
        measure(q, row);
        q.loss[i] = close(q, row);
        for (int r = 0; r < 3; ++r) q.similarity[r * q.n + i] = row.similarity[r];
        if (q.differentiate) differentiate(q, row, i);
    });
}

/// g_j = scale_j (sum_i pull_i a_i - scale_j (sum_i along_i) c_j), over the anchors whose negative j is, in their
/// order: one sum for each row, whatever the number of threads.
inline void candidate_gradient(const CandidateGradient& g, int threads) {
    for_rows(g.m, g.d, threads, [&g](int64_t j) {
        float* out = g.gradient + j * g.d;
        std::memset(out, 0, g.d * sizeof(float));
        const int64_t first = g.starts[j], last = g.starts[j + 1];
        if (first == last) return;
        float along = 0;
        for (int64_t e = first; e < last; ++e) {
            const int64_t i = g.order[e];
            if (g.pull[i] == 0 && g.pull[g.n + i] == 0) continue;
            add_scaled(out, g.anchor + i * g.anchor_stride, g.pull[i], g.d);
            along += g.pull[g.n + i];
        }
        if (!g.normalize) return;
        const float* own = g.candidate + j * g.candidate_stride;
        const float length = norm(own, g.d), scale = length < g.shortest ? 0 : 1 / length;
        write_gradient(out, out, 1, scale, own, scale, along * scale, g.d);
    });
}

}  // namespace FASTCSE_ISA
