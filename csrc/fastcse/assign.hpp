// Nearest centroids of points, and the sums of each centroid's points.
//
// Products of all pairs come from BLAS and may be rough (bfloat16): one pass finds what may be nearest within their
// error, and only that is scored again from the rows. So both kinds of products give the same bits.
#pragma once
#include <cmath>
#include <limits>

#include "rows.hpp"

namespace FASTCSE_ISA {

using fastcse::Assignment;
using fastcse::ClusterSums;

inline float as_float(float x) { return x; }
inline float as_float(fastcse::bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

/// Column `j` of a row of products, to rank by: larger is nearer; NaN for a centroid that is out.
template <class T>
float rank(const Assignment& a, const T* dot, int64_t j) {
    return as_float(dot[j]) * a.col_scale[j] + a.col_bias[j];
}

/// The best ranks of a row, lane by lane: columns j, j + W, j + 2 W ... share a lane. The columns behind the last whole
/// vector are in no lane.
struct Lanes {
    f32v first, second;
};

template <class T>
Lanes best_by_lane(const Assignment& a, const T* dot) {
    const f32v none = broadcast(-std::numeric_limits<float>::infinity());
    Lanes lanes{none, none};
    for (int64_t j = 0; j + W <= a.cols; j += W) {
        f32v v = load(dot + j) * load(a.col_scale + j) + load(a.col_bias + j);
        v = v == v ? v : none;
        const f32v lower = v < lanes.first ? v : lanes.first;
        lanes.second = lower > lanes.second ? lower : lanes.second;
        lanes.first = v > lanes.first ? v : lanes.first;
    }
    return lanes;
}

/// The best rank of a row, or the second best.
template <class T>
float best_rank(const Assignment& a, const T* dot, const Lanes& lanes) {
    float top[2] = {-std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()};
    const auto take = [&top](float v) {
        if (v > top[0]) {
            top[1] = top[0];
            top[0] = v;
        } else if (v > top[1])
            top[1] = v;
    };
    for (int k = 0; k < W; ++k) {
        take(lanes.first[k]);
        take(lanes.second[k]);
    }
    for (int64_t j = a.cols / W * W; j < a.cols; ++j) take(rank(a, dot, j));
    return top[a.wanted - 1];
}

inline float squared_distance(const float* x, const float* c, int64_t d) {
    f32v part[4] = {};
    int64_t k = 0;
    for (; k + 4 * W <= d; k += 4 * W)
        for (int u = 0; u < 4; ++u) {
            const f32v apart = load(x + k + u * W) - load(c + k + u * W);
            part[u] += apart * apart;
        }
    float total = sum((part[0] + part[1]) + (part[2] + part[3]));
    for (; k < d; ++k) total += (x[k] - c[k]) * (x[k] - c[k]);
    return total;
}

/// The nearest so far, with scores that are larger the nearer; of equal ones the lower index.
struct Nearest {
    int64_t index[2] = {-1, -1};
    float score[2];

    bool before(int64_t j, float s, int r) const {
        return index[r] < 0 || s > score[r] || (s == score[r] && j < index[r]);
    }
    void offer(int64_t j, float s) {
        if (before(j, s, 0)) {
            index[1] = index[0];
            score[1] = score[0];
            index[0] = j;
            score[0] = s;
        } else if (before(j, s, 1)) {
            index[1] = j;
            score[1] = s;
        }
    }
};

template <class T>
void assign_row(const Assignment& a, int64_t i, int64_t& looked) {
    const T* dot = static_cast<const T*>(a.dot) + i * a.stride;
    const float* x = a.point + i * a.point_stride;
    Nearest found;
    const auto score = [&](int64_t j) {
        const float* c = a.centroid + j * a.centroid_stride;
        const float s =
            a.distance ? -squared_distance(x, c, a.d) : FASTCSE_ISA::dot(x, c, a.d) * a.row_scale[i] * a.norm_scale[j];
        if (s == s) found.offer(j, s);
        ++looked;
    };
    // A point that is not finite is near to nothing.
    if (std::isfinite(a.slack[i])) {
        const Lanes lanes = best_by_lane(a, dot);
        const float least = best_rank(a, dot, lanes) - a.slack[i];
        const int64_t whole = a.cols / W * W;
        for (int k = 0; k < W; ++k)
            if (lanes.first[k] >= least)
                for (int64_t j = k; j < whole; j += W)
                    if (rank(a, dot, j) >= least) score(j);
        for (int64_t j = whole; j < a.cols; ++j)
            if (rank(a, dot, j) >= least) score(j);
    }
    for (int r = 0; r < a.wanted; ++r) {
        const bool there = found.index[r] >= 0;
        a.index[i * a.wanted + r] = found.index[r];
        a.value[i * a.wanted + r] = !there       ? std::numeric_limits<float>::quiet_NaN()
                                    : a.distance ? 0 - found.score[r]
                                                 : found.score[r];
    }
}

inline void assign_rows(const Assignment& a, int threads) {
    for_rows(a.rows, a.cols + a.d, threads, [&a](int64_t i) {
        int64_t looked = 0;
        if (a.half)
            assign_row<fastcse::bfloat16>(a, i, looked);
        else
            assign_row<float>(a, i, looked);
        a.looked[i] = looked;
    });
}

/// Columns of a piece of the sums: a thread's accumulators stay in its first-level cache.
constexpr int64_t sum_columns = 256;

/// sums_c += the points of cluster c in their order, so that the result does not depend on the number of threads.
inline void cluster_sums(const ClusterSums& s, int threads) {
    const int64_t pieces = (s.d + sum_columns - 1) / sum_columns;
    fastcse::parallel_for(s.clusters * pieces, s.n * s.d < 65536 ? 1 : threads, [&s, pieces](int64_t work) {
        const int64_t cluster = work / pieces, first = work % pieces * sum_columns;
        const int64_t width = s.d - first < sum_columns ? s.d - first : sum_columns;
        double* out = s.sums + cluster * s.d + first;
        for (int64_t e = s.starts[cluster]; e < s.starts[cluster + 1]; ++e) {
            const int64_t i = s.order[e];
            const float* x = s.point + i * s.point_stride + first;
            const double scale = s.scale ? s.scale[i] : 1;
            for (int64_t k = 0; k < width; ++k) out[k] += x[k] * scale;
        }
    });
}

}  // namespace FASTCSE_ISA
