// Exact top-k from tiles of dot products: a vectorised look at every product, and an exact score for the few that are
// left.
//
// A product p, in float32 or bfloat16, misses the true score by at most slack + rounding |p|. So a column is out for
// good once k others are better by both their errors; the rest is held, and held columns are scored in double, in a
// fixed order. Neither the type of the products nor the order of their sums decides who is found.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "exact.hpp"
#include "parallel.hpp"
#include "tile.hpp"
#include "vec.hpp"

namespace FASTCSE_ISA {

using fastcse::Held;
using fastcse::Selection;

/// What one query holds on to.
struct Row {
    const Selection& t;
    int64_t row;
    Held* held;
    int64_t& count;

    Row(const Selection& t, int64_t row) : t(t), row(row), held(t.held + row * t.room), count(t.count[row]) {}

    /// In the scale of the products: half of score + |a|^2 where scores are squared distances.
    double as_product(double score) const {
        return t.metric == fastcse::squared_distance ? (score + t.row_square[row]) / 2 : score;
    }
    double error(double product) const { return t.slack[row] + std::abs(product) * t.rounding; }

    /// The least product whose true score may reach `score`, itself in the scale of the products. The lowest float
    /// leaves -inf, a column that is left out, and NaN outside.
    float reaching(double score) const {
        if (score == INFINITY) return INFINITY;
        const double rough = score - t.slack[row];
        return std::max(-FLT_MAX, static_cast<float>(rough - std::abs(rough) * t.rounding));
    }
    float at_most(double score) const {
        if (std::isinf(score)) return static_cast<float>(score);
        const double rough = score + t.slack[row];
        return static_cast<float>(rough + std::abs(rough) * t.rounding);
    }

    /// Rounded to the float that the caller will see: what he sees as equal is a tie.
    double score(int64_t column) const { return static_cast<float>(unrounded(column)); }

    double unrounded(int64_t column) const {
        if (t.metric == fastcse::squared_distance) return -sum_with(column, true);
        const double product = sum_with(column, false);
        if (t.metric == fastcse::inner_product) return product;
        const bool zero = t.row_scale[row] == 0 || t.col_scale[column] == 0;
        return zero ? 0 : product / (std::sqrt(t.row_square[row]) * t.col_length[column]);
    }
    double sum_with(int64_t column, bool distance) const {
        const float* a = t.query + row * t.query_stride;
        const int64_t at = column * t.corpus_stride;
        switch (t.corpus_type) {
            case fastcse::Element::float32:
                return exact_sum(a, static_cast<const float*>(t.corpus) + at, t.d, distance);
            case fastcse::Element::float16:
                return exact_sum(a, static_cast<const fastcse::float16*>(t.corpus) + at, t.d, distance);
            default:
                return exact_sum(a, static_cast<const fastcse::bfloat16*>(t.corpus) + at, t.d, distance);
        }
    }
    bool within_bounds(double score) const { return score >= t.least[row] && score <= t.most[row]; }

    /// Whether the product says nothing about the side of a bound that the score is on.
    bool near_a_bound(double product) const {
        const double e = error(product) * 1.01;
        return std::abs(product - as_product(t.least[row])) <= e || std::abs(product - as_product(t.most[row])) <= e;
    }

    /// Returns whether the threshold may have risen.
    bool offer(float product, int64_t column) {
        if (t.row_id && t.row_id[row] == t.col_id[column]) return false;
        if (near_a_bound(product) && !within_bounds(score(column))) return false;
        held[count++] = {product, 0, column};
        if (count < t.room) return false;
        shrink();
        return true;
    }

    /// Lets go of what cannot be among the k best.
    void shrink() {
        std::nth_element(held, held + t.k - 1, held + count, larger);
        const double kth = held[t.k - 1].product;
        raise(kth - error(kth));
        const float least = t.threshold[row];
        count = std::partition(held, held + count, [least](const Held& x) { return x.product >= least; }) - held;
        if (count > t.room - (t.room - t.k) / 2) keep_best();
    }

    /// Too many are equally good as far as products tell: their scores decide at once, and stand for the products.
    void keep_best() {
        t.looked[row] += count;
        score_all();
        if (count < t.k) return;
        std::nth_element(held, held + t.k - 1, held + count, higher);
        count = t.k;
        raise(held[t.k - 1].product);
    }
    void score_all() {
        for (int64_t i = 0; i < count; ++i) {
            held[i].score = score(held[i].column);
            held[i].product = as_product(held[i].score);
        }
    }
    void raise(double score) { t.threshold[row] = std::max(t.threshold[row], reaching(score)); }

    static bool larger(const Held& x, const Held& y) { return x.product > y.product; }
    static bool higher(const Held& x, const Held& y) {
        return x.score > y.score || (x.score == y.score && x.column < y.column);
    }

    /// The k best in order into (value, index); returns how many there are.
    int64_t finish(float* value, int64_t* index) {
        score_all();
        const int64_t found = std::min(count, t.k);
        std::partial_sort(held, held + found, held + count, higher);
        for (int64_t i = 0; i < found; ++i) value[i] = static_cast<float>(held[i].score), index[i] = held[i].column;
        return found;
    }
};

/// Whether any of the `count` vectors' products is in [least, most].
template <int count, class Product>
bool any_within(const Product* dot, const float* scale, const float* bias, float row_scale, float least, float most) {
    i32v hits{};
    for (int u = 0; u < count; ++u) {
        const f32v s = load(dot + u * W) * (load(scale + u * W) * row_scale) + load(bias + u * W);
        hits |= (s >= least) & (s <= most);
    }
    int64_t words[sizeof hits / 8], any = 0;
    std::memcpy(words, &hits, sizeof hits);
    for (int64_t word : words) any |= word;
    return any != 0;
}

template <class Product>
void select_row(const Selection& t, int64_t at) {
    Row row(t, at);
    if (t.settle) row.keep_best();
    const Product* dot = static_cast<const Product*>(t.dot) + at * t.stride;
    const float *scale = t.col_scale + t.first_col, *bias = t.col_bias + t.first_col;
    const float row_scale = t.row_scale[at], most = row.at_most(row.as_product(t.most[at]));
    const float bound = row.reaching(row.as_product(t.least[at]));
    float least = std::max(bound, t.threshold[at]);
    constexpr int group = 4;
    for (int64_t j = 0; j < t.cols; j += group * W) {
        const int64_t end = std::min<int64_t>(j + group * W, t.cols);
        const bool whole = end - j == group * W;
        if (whole && !any_within<group>(dot + j, scale + j, bias + j, row_scale, least, most)) continue;
        for (int64_t k = j; k < end; ++k) {
            const float s = static_cast<float>(as_double(dot[k])) * (scale[k] * row_scale) + bias[k];
            if (s >= least && s <= most && row.offer(s, t.first_col + k)) least = std::max(bound, t.threshold[at]);
        }
    }
}

inline void select_tile(const Selection& t, int threads) {
    const auto one = [&t](int64_t row) { t.half ? select_row<fastcse::bfloat16>(t, row) : select_row<float>(t, row); };
    fastcse::parallel_for(t.rows, t.rows * t.cols < 16384 ? 1 : threads, one);
}

/// The end of a search: value (rows, k) and index (rows, k), best first; `count` becomes how many there are.
inline void finish_selection(const Selection& t, float* value, int64_t* index, int threads) {
    fastcse::parallel_for(t.rows, threads, [=, &t](int64_t at) {
        Row row(t, at);
        row.count = row.finish(value + at * t.k, index + at * t.k);
    });
}

}  // namespace FASTCSE_ISA
