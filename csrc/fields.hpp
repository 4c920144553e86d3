// A Python dictionary of addresses and numbers into what a kernel reads. Fields that are not given are null or an
// error.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fastcse/tile.hpp"

namespace py = pybind11;

namespace fields {

using Address = std::uintptr_t;  // tensor.data_ptr(); 0 for an absent tensor

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

#define FASTCSE_POINTER(into, name, type) \
    if (fields.contains(#name)) into.name = at<type>(fields[#name].cast<Address>());
#define FASTCSE_VALUE(into, name, type) into.name = fields[#name].cast<type>();

inline fastcse::Tile tile_from(const py::dict& fields) {
    fastcse::Tile tile{};
    FASTCSE_POINTER(tile, dot, float)
    FASTCSE_VALUE(tile, stride, int64_t)
    FASTCSE_VALUE(tile, rows, int64_t)
    FASTCSE_VALUE(tile, cols, int64_t)
    FASTCSE_VALUE(tile, first_col, int64_t)
    FASTCSE_POINTER(tile, row_scale, const float)
    FASTCSE_POINTER(tile, row_shift, const float)
    FASTCSE_POINTER(tile, row_weight, const float)
    FASTCSE_POINTER(tile, col_scale, const float)
    FASTCSE_POINTER(tile, col_bias, const float)
    FASTCSE_POINTER(tile, own, const int64_t)
    FASTCSE_VALUE(tile, own_log_weight, float)
    FASTCSE_POINTER(tile, row_id, const int64_t)
    FASTCSE_POINTER(tile, col_id, const int64_t)
    FASTCSE_VALUE(tile, inv_temperature, float)
    FASTCSE_VALUE(tile, margin, float)
    FASTCSE_VALUE(tile, store, bool)
    FASTCSE_POINTER(tile, row_sum, float)
    FASTCSE_POINTER(tile, row_f_sum, float)
    FASTCSE_POINTER(tile, col_shift, const float)
    FASTCSE_POINTER(tile, col_weight, const float)
    FASTCSE_POINTER(tile, col_sum, float)
    FASTCSE_POINTER(tile, row_similarity_sum, float)
    FASTCSE_POINTER(tile, row_count, float)
    FASTCSE_POINTER(tile, row_hardest, float)
    FASTCSE_POINTER(tile, row_hardest_col, int64_t)
    return tile;
}

inline fastcse::Selection selection_from(const py::dict& fields) {
    fastcse::Selection s{};
    FASTCSE_POINTER(s, dot, const void)
    FASTCSE_VALUE(s, half, bool)
    FASTCSE_VALUE(s, settle, bool)
    FASTCSE_VALUE(s, stride, int64_t)
    FASTCSE_VALUE(s, rows, int64_t)
    FASTCSE_VALUE(s, cols, int64_t)
    FASTCSE_VALUE(s, first_col, int64_t)
    FASTCSE_POINTER(s, row_scale, const float)
    FASTCSE_POINTER(s, col_scale, const float)
    FASTCSE_POINTER(s, col_bias, const float)
    FASTCSE_POINTER(s, slack, const float)
    FASTCSE_VALUE(s, rounding, float)
    FASTCSE_POINTER(s, row_square, const double)
    FASTCSE_POINTER(s, col_length, const double)
    FASTCSE_POINTER(s, least, const double)
    FASTCSE_POINTER(s, most, const double)
    FASTCSE_POINTER(s, query, const float)
    FASTCSE_POINTER(s, corpus, const void)
    s.corpus_type = static_cast<fastcse::Element>(fields["corpus_type"].cast<int>());
    FASTCSE_VALUE(s, query_stride, int64_t)
    FASTCSE_VALUE(s, corpus_stride, int64_t)
    FASTCSE_VALUE(s, d, int64_t)
    s.metric = static_cast<fastcse::Metric>(fields["metric"].cast<int>());
    FASTCSE_POINTER(s, row_id, const int64_t)
    FASTCSE_POINTER(s, col_id, const int64_t)
    FASTCSE_VALUE(s, k, int64_t)
    FASTCSE_VALUE(s, room, int64_t)
    FASTCSE_POINTER(s, held, fastcse::Held)
    FASTCSE_POINTER(s, count, int64_t)
    FASTCSE_POINTER(s, threshold, float)
    FASTCSE_POINTER(s, looked, int64_t)
    return s;
}

inline fastcse::StepRows step_from(const py::dict& fields) {
    fastcse::StepRows s{};
    FASTCSE_POINTER(s, base, const float)
    FASTCSE_VALUE(s, base_stride, int64_t)
    FASTCSE_POINTER(s, direction, const float)
    FASTCSE_VALUE(s, direction_stride, int64_t)
    FASTCSE_VALUE(s, n, int64_t)
    FASTCSE_VALUE(s, d, int64_t)
    FASTCSE_POINTER(s, radius, const float)
    FASTCSE_VALUE(s, radius_value, float)
    s.kind = static_cast<fastcse::Step>(fields["kind"].cast<int>());
    FASTCSE_POINTER(s, out, float)
    return s;
}

inline fastcse::Quadruplets quadruplets_from(const py::dict& fields) {
    fastcse::Quadruplets q{};
    const auto rows = fields["rows"].cast<std::vector<Address>>();
    const auto strides = fields["strides"].cast<std::vector<int64_t>>();
    const auto gradients = fields["gradients"].cast<std::vector<Address>>();
    const auto weights = fields["weights"].cast<std::vector<float>>();
    const auto margins = fields["margins"].cast<std::vector<float>>();
    for (int r = 0; r < 4; ++r) {
        q.rows[r] = at<const float>(rows.at(r));
        q.stride[r] = strides.at(r);
        q.gradient[r] = at<float>(gradients.at(r));
    }
    for (int r = 0; r < 2; ++r) {
        q.weight[r] = weights.at(r);
        q.margin[r] = margins.at(r);
    }
    FASTCSE_POINTER(q, index, const int64_t)
    FASTCSE_VALUE(q, n, int64_t)
    FASTCSE_VALUE(q, d, int64_t)
    FASTCSE_VALUE(q, classic, bool)
    FASTCSE_VALUE(q, normalize, bool)
    FASTCSE_VALUE(q, shortest, float)
    FASTCSE_POINTER(q, loss, float)
    FASTCSE_POINTER(q, similarity, float)
    FASTCSE_VALUE(q, differentiate, bool)
    FASTCSE_POINTER(q, upstream, const float)
    FASTCSE_VALUE(q, factor, float)
    FASTCSE_POINTER(q, pull, float)
    return q;
}

inline fastcse::CandidateGradient candidate_gradient_from(const py::dict& fields) {
    fastcse::CandidateGradient g{};
    FASTCSE_POINTER(g, anchor, const float)
    FASTCSE_VALUE(g, anchor_stride, int64_t)
    FASTCSE_POINTER(g, candidate, const float)
    FASTCSE_VALUE(g, candidate_stride, int64_t)
    FASTCSE_VALUE(g, n, int64_t)
    FASTCSE_VALUE(g, m, int64_t)
    FASTCSE_VALUE(g, d, int64_t)
    FASTCSE_POINTER(g, order, const int64_t)
    FASTCSE_POINTER(g, starts, const int64_t)
    FASTCSE_POINTER(g, pull, const float)
    FASTCSE_VALUE(g, normalize, bool)
    FASTCSE_VALUE(g, shortest, float)
    FASTCSE_POINTER(g, gradient, float)
    return g;
}

inline fastcse::Assignment assignment_from(const py::dict& fields) {
    fastcse::Assignment a{};
    FASTCSE_POINTER(a, dot, const void)
    FASTCSE_VALUE(a, half, bool)
    FASTCSE_VALUE(a, stride, int64_t)
    FASTCSE_VALUE(a, rows, int64_t)
    FASTCSE_VALUE(a, cols, int64_t)
    FASTCSE_POINTER(a, col_scale, const float)
    FASTCSE_POINTER(a, col_bias, const float)
    FASTCSE_POINTER(a, slack, const float)
    FASTCSE_POINTER(a, point, const float)
    FASTCSE_VALUE(a, point_stride, int64_t)
    FASTCSE_POINTER(a, centroid, const float)
    FASTCSE_VALUE(a, centroid_stride, int64_t)
    FASTCSE_VALUE(a, d, int64_t)
    FASTCSE_POINTER(a, row_scale, const float)
    FASTCSE_POINTER(a, norm_scale, const float)
    FASTCSE_VALUE(a, distance, bool)
    FASTCSE_VALUE(a, wanted, int)
    FASTCSE_POINTER(a, index, int64_t)
    FASTCSE_POINTER(a, value, float)
    FASTCSE_POINTER(a, looked, int64_t)
    return a;
}

inline fastcse::ClusterSums cluster_sums_from(const py::dict& fields) {
    fastcse::ClusterSums s{};
    FASTCSE_POINTER(s, point, const float)
    FASTCSE_VALUE(s, point_stride, int64_t)
    FASTCSE_VALUE(s, n, int64_t)
    FASTCSE_VALUE(s, d, int64_t)
    FASTCSE_VALUE(s, clusters, int64_t)
    FASTCSE_POINTER(s, scale, const float)
    FASTCSE_POINTER(s, order, const int64_t)
    FASTCSE_POINTER(s, starts, const int64_t)
    FASTCSE_POINTER(s, sums, double)
    return s;
}
#undef FASTCSE_POINTER
#undef FASTCSE_VALUE

}  // namespace fields
