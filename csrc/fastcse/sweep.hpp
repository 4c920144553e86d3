// The sweep: a tile of dot products becomes exponentials, their sums, and the weights of the gradient, in one pass.
//
//     s = dot * row_scale * col_scale          x = f(s) * inv_temperature + col_bias
//     e = exp(x - row_shift)                   sums gain e
//     dot <- (weight e [+ H exp(x - d)]) f'(s) col_scale     if stored; exactly 0 where the pair is left out
//
// f' is stored without the temperature, and with col_scale but not row_scale: rows are multiplied by those once, in the
// products that follow.
#pragma once
#include <cmath>

#include "parallel.hpp"
#include "tile.hpp"
#include "vec.hpp"

namespace FASTCSE_ISA {

using fastcse::Tile;

/// Running sums of one row.
struct RowSums {
    f32v e{}, f{}, similarity{};
    float hardest = -INFINITY;
    int64_t hardest_col = -1;
    int64_t count = 0;
};

/// Columns [begin, end) of one row, none of them left out; `extra` is added to the logit.
template <class Transform, bool COLS, bool STORE, bool STATS>
struct Segment {
    const Tile& t;
    int64_t row;
    float* col_sum;  // this panel's sums, if COLS and not STORE
    RowSums& sums;
    const float weight = t.row_weight ? t.row_weight[row] : 1.0f;

    void vector(int64_t j, int lanes, float extra) {
        const bool whole = lanes == W;
        float* dot = t.dot + row * t.stride + j;
        const f32v col_scale = whole ? load(t.col_scale + j) : load_first(t.col_scale + j, lanes);
        const f32v bias = (whole ? load(t.col_bias + j) : load_first(t.col_bias + j, lanes)) + extra;
        const f32v raw = whole ? load(dot) : load_first(dot, lanes);
        const f32v s = raw * (t.row_scale[row] * col_scale);
        const f32v f = Transform::f(s, t.margin);
        // The shift joins before the product is rounded: the rounding error is then that of x - c, not of x.
        const f32v row_exponent = f * t.inv_temperature + (bias - t.row_shift[row]);
        const f32v e = whole ? exp(row_exponent) : first(exp(row_exponent), lanes);
        sums.e += e;
        f32v weighted = e * weight;
        if constexpr (COLS) {
            const f32v shift = whole ? load(t.col_shift + j) : load_first(t.col_shift + j, lanes);
            const f32v col_exponent = f * t.inv_temperature + (bias - shift);
            const f32v e_col = whole ? exp(col_exponent) : first(exp(col_exponent), lanes);
            if constexpr (STORE)
                weighted += e_col * (whole ? load(t.col_weight + j) : load_first(t.col_weight + j, lanes));
            else if (whole)
                store_add(col_sum + j, e_col);
            else
                store_first(col_sum + j, load_first(col_sum + j, lanes) + e_col, lanes);
        }
        sums.f += weighted * f;
        if constexpr (STORE) {
            const f32v out = weighted * Transform::df(s, t.margin) * col_scale;
            whole ? store(dot, out) : store_first(dot, out, lanes);
        }
        if constexpr (STATS) note(s, j, lanes);
    }

    static f32v first(f32v v, int lanes) {
        for (int k = lanes; k < W; ++k) v[k] = 0;
        return v;
    }
    static void store_add(float* p, f32v v) { store(p, load(p) + v); }

    /// Sum, count and the largest similarity; a tie keeps the lower column, since columns come in ascending order.
    void note(f32v s, int64_t j, int lanes) {
        sums.similarity += first(s, lanes);
        sums.count += lanes;
        const f32v best = s > sums.hardest ? s : broadcast(sums.hardest);
        if (!(max(best) > sums.hardest)) return;
        for (int k = 0; k < lanes; ++k)
            if (s[k] > sums.hardest) {
                sums.hardest = s[k];
                sums.hardest_col = t.first_col + j + k;
            }
    }

    void run(int64_t begin, int64_t end, float extra = 0) {
        int64_t j = begin;
        for (; j + W <= end; j += W) vector(j, W, extra);
        if (j < end) vector(j, static_cast<int>(end - j), extra);
    }
};

/// The next column in [j, cols) whose id is `id`, or `cols`.
inline int64_t next_equal(const int64_t* ids, int64_t id, int64_t j, int64_t cols) {
    constexpr int64_t group = 32;  // equal ids are rare: a group is looked into only if it holds one
    for (; j + group <= cols; j += group) {
        int64_t hits = 0;
        for (int64_t k = 0; k < group; ++k) hits += ids[j + k] == id;
        if (hits) break;
    }
    for (; j < cols; ++j)
        if (ids[j] == id) return j;
    return cols;
}

/// One row: its segments between the columns that are left out.
template <class Transform, bool COLS, bool STORE, bool STATS>
void sweep_row(const Tile& t, int64_t row) {
    RowSums sums;
    float* col_sum = COLS && !STORE ? t.col_sum + row / fastcse::panel_rows * t.cols : nullptr;
    Segment<Transform, COLS, STORE, STATS> segment{t, row, col_sum, sums};
    float* dot = t.dot + row * t.stride;
    const int64_t own = t.own ? t.own[row] - t.first_col : -1;
    auto next_id = [&](int64_t j) { return t.row_id ? next_equal(t.col_id, t.row_id[row], j, t.cols) : t.cols; };
    int64_t same_id = next_id(0);
    for (int64_t j = 0; j < t.cols;) {
        int64_t stop = same_id;
        if (own >= j && own < stop) stop = own;
        segment.run(j, stop);
        if (stop == t.cols) break;
        // A pair with equal ids is left out, also where it is the anchor's own column.
        const bool left_out = stop == same_id || std::isinf(t.own_log_weight);
        if (left_out) {
            if constexpr (STORE) dot[stop] = 0;
        } else {
            segment.run(stop, stop + 1, t.own_log_weight);
        }
        if (stop == same_id) same_id = next_id(stop + 1);
        j = stop + 1;
    }
    if constexpr (!COLS || STORE) t.row_f_sum[row] += sum(sums.f);
    t.row_sum[row] += sum(sums.e);
    if constexpr (STATS) {
        t.row_similarity_sum[row] += sum(sums.similarity);
        t.row_count[row] += static_cast<float>(sums.count);
        if (sums.hardest > t.row_hardest[row]) {
            t.row_hardest[row] = sums.hardest;
            t.row_hardest_col[row] = sums.hardest_col;
        }
    }
}

template <class Transform, bool COLS, bool STORE, bool STATS>
void sweep_rows(const Tile& t, int threads) {
    const int64_t panels = (t.rows + fastcse::panel_rows - 1) / fastcse::panel_rows;
    const auto panel = [&t](int64_t p) {
        const int64_t stop = (p + 1) * fastcse::panel_rows, end = stop < t.rows ? stop : t.rows;
        for (int64_t row = p * fastcse::panel_rows; row < end; ++row) sweep_row<Transform, COLS, STORE, STATS>(t, row);
    };
    // A small tile is done before a second thread has woken up.
    fastcse::parallel_for(panels, t.rows * t.cols < 16384 ? 1 : threads, panel);
}

/// Chooses the form from what the caller asks for.
template <class Transform>
void sweep(const Tile& t, int threads) {
    const bool cols = t.col_shift != nullptr, stats = t.row_count != nullptr;
    if (cols && t.store) return sweep_rows<Transform, true, true, false>(t, threads);
    if (cols)
        return stats ? sweep_rows<Transform, true, false, true>(t, threads)
                     : sweep_rows<Transform, true, false, false>(t, threads);
    if (t.store)
        return stats ? sweep_rows<Transform, false, true, true>(t, threads)
                     : sweep_rows<Transform, false, true, false>(t, threads);
    return stats ? sweep_rows<Transform, false, false, true>(t, threads)
                 : sweep_rows<Transform, false, false, false>(t, threads);
}

}  // namespace FASTCSE_ISA
