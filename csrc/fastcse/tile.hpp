// What one pass over a tile of similarities, or over the rows of a chunk, reads and writes. Pointers and sizes only: no
// Python, no torch, no allocation.
#pragma once
#include <cstdint>

namespace fastcse {

/// A tile of raw dot products of `rows` anchors with `cols` candidates, and everything that turns them into
/// exponentials. Row arrays are indexed from the tile's first row, column arrays from its first column. A null pointer
/// means "absent".
struct Tile {
    float* dot;  ///< (rows, cols), `stride` floats apart. In: dot products of the raw rows. Out: gradient weights, if
                 ///< `store`.
    int64_t stride;
    int64_t rows, cols;
    int64_t first_col;        ///< column number of the tile's column 0 within its block, for `own` and `hardest_index`
    const float* row_scale;   ///< 1 / |a_i|, or 1
    const float* row_shift;   ///< c_i, taken off the logit before the exponential
    const float* row_weight;  ///< multiplies what is stored; null: 1
    const float* col_scale;   ///< 1 / |c_j|, or 1
    const float* col_bias;    ///< log-weight of the column
    const int64_t* own;       ///< the anchor's own column: its positive, or its own hard negative
    float own_log_weight;     ///< added to the logit at `own`; -inf leaves the pair out
    const int64_t* row_id;    ///< a pair with equal ids is left out
    const int64_t* col_id;
    float inv_temperature, margin;
    bool store;  ///< write gradient weights over `dot`

    float* row_sum;    ///< += sum_j e_ij
    float* row_f_sum;  ///< += sum_j weight_i e_ij f(s_ij), for the gradient of the temperature

    // Column direction of the symmetric loss.
    const float* col_shift;   ///< d_j
    const float* col_weight;  ///< H_j; with `store`: what is stored gains H_j e^(x - d_j)
    float* col_sum;           ///< (panels, cols): sum over the panel's rows of e^(x - d_j)

    // By-products.
    float* row_similarity_sum;
    float* row_count;    ///< += negatives that took part
    float* row_hardest;  ///< max similarity so far
    int64_t* row_hardest_col;
};

/// Rows of one panel of `col_sum`. Fixed, so that the sums do not depend on the number of threads.
constexpr int64_t panel_rows = 64;

/// The rows of a chunk before the sweep: similarity and logit of the positive, and the shift that keeps exponentials in
/// range.
struct OpenRows {
    const float *a, *a_scale, *c, *c_scale;
    int64_t a_stride, c_stride, n, d;
    const int64_t* index;
    const float* ceiling;  ///< (n) largest possible logit less the headroom, or null
    float ceiling_value;   ///< the same for all rows where `ceiling` is null
    float offset;          ///< added to every shift
    float inv_temperature, margin;
    float *similarity, *logit, *shift;
};

/// What the products of a chunk are multiplied with: factor = scale inverse / temperature for its rows, pull = share
/// f+'(s) ... between a row and its positive, and each row's part of the gradient of 1 / temperature. `inverse`
/// null: 1.
struct PullRows {
    const float *share, *inverse, *similarity, *f_sum, *a_scale, *c_scale;
    const int64_t* index;
    int64_t n;
    float inv_temperature, margin;
    float *factor, *pull, *d_inv_temperature;
};

enum Metric : int { cosine, inner_product, squared_distance };
enum class Element : int { float32, float16, bfloat16 };
struct float16 {
    uint16_t bits;
};
struct bfloat16 {
    uint16_t bits;
};

/// A column that may be among the k best, with its product.
struct Held {
    double product, score;  ///< the score once it was looked at
    int64_t column;
};

/// A tile of products of `rows` queries with `cols` rows of a corpus, and what each query holds on to so far. Row
/// arrays are indexed from the chunk's first query, column arrays and the corpus from its row 0. Scores are better the
/// larger they are: a squared distance counts negative.
struct Selection {
    const void* dot;  ///< (rows, cols) float, or bfloat16 if `half`; `stride` entries apart
    bool half;
    bool settle;  ///< earlier products were rougher than these: scores take their place first
    int64_t stride, rows, cols;
    int64_t first_col;           ///< number in the corpus of the tile's column 0
    const float* row_scale;      ///< dot row_scale col_scale + col_bias is the score, or half of score + |a|^2 for
    const float* col_scale;      ///< distances
    const float* col_bias;       ///< NaN or -inf leaves a column out
    const float* slack;          ///< (rows) by how much that may miss the exact score before it is rounded, in this and
                                 ///< all earlier tiles
    float rounding;              ///< relative error of that last rounding
    const double* row_square;    ///< |a|^2
    const double* col_length;    ///< |c|
    const double *least, *most;  ///< bounds of the exact score
    const float* query;
    const void* corpus;
    Element corpus_type;
    int64_t query_stride, corpus_stride, d;
    Metric metric;
    const int64_t *row_id, *col_id;  ///< a pair with equal ids is left out; null: none is
    int64_t k, room;                 ///< `room` >= k
    Held* held;                      ///< (rows, room)
    int64_t* count;                  ///< (rows) how many are held
    float* threshold;                ///< (rows) smaller products are out
    int64_t* looked;                 ///< (rows) += columns scored because products could not tell them apart
};

/// How `StepRows` takes a direction: as it is, or its rows or their signs to length 1.
enum class Step { raw, l2, sign };

/// Rows moved along directions: out_i = base_i + radius_i v_i.
struct StepRows {
    const float *base, *direction;
    int64_t base_stride, direction_stride, n, d;
    const float* radius;  ///< (n), or null: `radius_value` for all
    float radius_value;
    Step kind;
    float* out;  ///< (n, d)
};

/// Anchors with one positive and two negatives each, their hinge and its gradients.
struct Quadruplets {
    const float* rows[4];  ///< anchor, positive, batch negative, corpus negative
    int64_t strides[4];
    const int64_t* index;  ///< (n) the batch negative's row in rows[2], -1 for none; null: row i
    int64_t n, d;
    float weights[2], margins[2];
    bool classic;           ///< two hinges, one for each negative
    bool normalize;         ///< cosines
    float shortest;         ///< a shorter row is a zero row
    float* loss;            ///< (n)
    float* similarity;      ///< (3, n): of the anchor with its positive, batch negative, corpus negative
    bool differentiate;     ///< write what follows
    const float* upstream;  ///< (n) multiplies the gradients of a row; null: 1
    float factor;           ///< multiplies all of them
    float* gradients[4];    ///< (n, d) or null
    float* pull;            ///< (2, n) or null: what `CandidateGradient` reads
};

/// The batch negatives' gradient where they are rows of a matrix, each row's anchors in the order of their numbers.
struct CandidateGradient {
    const float *anchor, *candidate;
    int64_t anchor_stride, candidate_stride, n, m, d;
    const int64_t *order, *starts;  ///< (n) anchors by candidate, (m + 1) where each candidate's begin
    const float* pull;              ///< (2, n): factor of the anchor, and of the candidate itself
    bool normalize;
    float shortest;
    float* gradient;  ///< (m, d)
};

/// Points beside all centroids: dot col_scale + col_bias ranks them, the larger the nearer.
struct Assignment {
    const void* dot;  ///< (rows, cols) float, or bfloat16 if `half`; `stride` entries apart
    bool half;
    int64_t stride, rows, cols;
    const float *col_scale, *col_bias;  ///< a bias of NaN leaves a centroid out
    const float* slack;                 ///< (rows) twice what a rank may miss; not finite: the point is not
    const float *point, *centroid;
    int64_t point_stride, centroid_stride, d;
    const float *row_scale, *norm_scale;  ///< 1 / |x|, 1 / |c| of cosines
    bool distance;                        ///< squared distances instead of cosines
    int wanted;                           ///< the nearest 1 or 2
    int64_t* index;                       ///< (rows, wanted), -1 for none
    float* value;                         ///< (rows, wanted)
    int64_t* looked;                      ///< (rows) how many centroids were scored from the rows
};

/// Sums of points by cluster; `order` (n) holds them by cluster, `starts` (clusters + 1) where each begins.
struct ClusterSums {
    const float* point;
    int64_t point_stride, n, d, clusters;
    const float* scale;  ///< (n) multiplies a point; null: 1
    const int64_t *order, *starts;
    double* sums;  ///< (clusters, d), added to
};

}  // namespace fastcse
