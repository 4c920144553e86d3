// A Python dictionary of addresses and numbers into what a kernel reads. A pointer that is not given is null; a number
// that is not given is an error.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <type_traits>

#include "fastcse/tile.hpp"

namespace py = pybind11;

namespace fields {

using Address = std::uintptr_t;  // tensor.data_ptr(); 0 for an absent tensor

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

/// The type that Python has for a field.
template <class T>
using Given = std::conditional_t<std::is_pointer_v<T>, Address, std::conditional_t<std::is_enum_v<T>, int, T>>;

template <class T>
T converted(Given<T> given) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(given);
    if constexpr (!std::is_pointer_v<T>) return static_cast<T>(given);
}

template <class T>
void read(const py::dict& fields, const char* name, T& into) {
    if (std::is_pointer_v<T> && !fields.contains(name)) return;
    into = converted<T>(fields[name].cast<Given<T>>());
}

template <class T, std::size_t N>
void read(const py::dict& fields, const char* name, T (&into)[N]) {
    const auto given = fields[name].cast<std::vector<Given<T>>>();
    for (std::size_t i = 0; i < N; ++i) into[i] = converted<T>(given.at(i));
}

template <class Struct>
Struct from(const py::dict& fields);

#define F(name) read(fields, #name, out.name);
#define FASTCSE_FIELDS(Struct, READ)                                       \
    template <>                                                            \
    inline fastcse::Struct from<fastcse::Struct>(const py::dict& fields) { \
        fastcse::Struct out{};                                             \
        READ return out;                                                   \
    }

// clang-format off
FASTCSE_FIELDS(Tile,
    F(dot) F(stride) F(rows) F(cols) F(first_col) F(row_scale) F(row_shift) F(row_weight) F(col_scale) F(col_bias)
    F(own) F(own_log_weight) F(row_id) F(col_id) F(inv_temperature) F(margin) F(store) F(row_sum) F(row_f_sum)
    F(col_shift) F(col_weight) F(col_sum) F(row_similarity_sum) F(row_count) F(row_hardest) F(row_hardest_col))

FASTCSE_FIELDS(Selection,
    F(dot) F(half) F(settle) F(stride) F(rows) F(cols) F(first_col) F(row_scale) F(col_scale) F(col_bias) F(slack)
    F(rounding) F(row_square) F(col_length) F(least) F(most) F(query) F(corpus) F(corpus_type) F(query_stride)
    F(corpus_stride) F(d) F(metric) F(row_id) F(col_id) F(k) F(room) F(held) F(count) F(threshold) F(looked))

FASTCSE_FIELDS(StepRows,
    F(base) F(base_stride) F(direction) F(direction_stride) F(n) F(d) F(radius) F(radius_value) F(kind) F(out))

FASTCSE_FIELDS(Quadruplets,
    F(rows) F(strides) F(gradients) F(weights) F(margins) F(index) F(n) F(d) F(classic) F(normalize) F(shortest)
    F(loss) F(similarity) F(differentiate) F(upstream) F(factor) F(pull))

FASTCSE_FIELDS(CandidateGradient,
    F(anchor) F(anchor_stride) F(candidate) F(candidate_stride) F(n) F(m) F(d) F(order) F(starts) F(pull)
    F(normalize) F(shortest) F(gradient))

FASTCSE_FIELDS(Assignment,
    F(dot) F(half) F(stride) F(rows) F(cols) F(col_scale) F(col_bias) F(slack) F(point) F(point_stride) F(centroid)
    F(centroid_stride) F(d) F(row_scale) F(norm_scale) F(distance) F(wanted) F(index) F(value) F(looked))

FASTCSE_FIELDS(ClusterSums,
    F(point) F(point_stride) F(n) F(d) F(clusters) F(scale) F(order) F(starts) F(sums))
// clang-format on
#undef FASTCSE_FIELDS
#undef F

}  // namespace fields
