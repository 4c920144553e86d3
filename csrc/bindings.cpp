// Translation only: integers that are addresses become pointers, and nothing is computed here.
#include "fields.hpp"

#include "fastcse/dispatch.hpp"

using fastcse::Functions;
using namespace fields;

namespace {

const Functions* chosen = nullptr;

std::vector<std::string> usable() {
    std::vector<std::string> names;
    fastcse::for_each_usable([&](const Functions& table) { names.push_back(table.isa); });
    return names;
}

void use(const std::string& isa) {
    bool found = false;
    fastcse::for_each_usable([&](const Functions& table) {
        if (!found && isa == table.isa) {
            chosen = &table;
            found = true;
        }
    });
    if (!found) throw std::invalid_argument("this processor or build has no instruction set '" + isa + "'");
}

void measure_rows(Address x, int64_t stride, int64_t n, int64_t d, Address length, Address cut, int threads) {
    py::gil_scoped_release release;
    chosen->measure_rows(at<const float>(x), stride, n, d, at<double>(length), at<double>(cut), threads);
}

/// A kernel whose arguments are one dictionary.
template <class Struct, void (*Functions::*kernel)(const Struct&, int)>
void run(const py::dict& fields, int threads) {
    const auto arguments = from<Struct>(fields);
    py::gil_scoped_release release;
    (chosen->*kernel)(arguments, threads);
}

void finish_selection(const py::dict& fields, Address value, Address index, int threads) {
    const auto selection = from<fastcse::Selection>(fields);
    py::gil_scoped_release release;
    chosen->finish_selection(selection, at<float>(value), at<int64_t>(index), threads);
}

void sweep(const std::string& transform, const py::dict& fields, int threads) {
    const auto tile = from<fastcse::Tile>(fields);
    py::gil_scoped_release release;
    chosen->sweep(transform, tile, threads);
}

void inverse_norms(Address x, int64_t stride, int64_t n, int64_t d, float shortest, Address scale, int threads) {
    py::gil_scoped_release release;
    chosen->inverse_norms(at<const float>(x), stride, n, d, shortest, at<float>(scale), threads);
}

void open_rows(const std::string& transform, Address a, int64_t a_stride, Address a_scale, Address c, int64_t c_stride,
               Address c_scale, Address index, int64_t n, int64_t d, Address ceiling, float ceiling_value, float offset,
               float inv_temperature, float margin, Address out, int threads) {
    float* rows = at<float>(out);  // (3, n): similarity, logit, shift
    const fastcse::OpenRows work{at<const float>(a),
                                 at<const float>(a_scale),
                                 at<const float>(c),
                                 at<const float>(c_scale),
                                 a_stride,
                                 c_stride,
                                 n,
                                 d,
                                 at<const int64_t>(index),
                                 at<const float>(ceiling),
                                 ceiling_value,
                                 offset,
                                 inv_temperature,
                                 margin,
                                 rows,
                                 rows + n,
                                 rows + 2 * n};
    py::gil_scoped_release release;
    chosen->open_rows(transform, work, threads);
}

void close_rows(Address sum, Address shift, Address logit, int64_t n, Address out) {
    float* rows = at<float>(out);  // (3, n): loss, share, inverse
    py::gil_scoped_release release;
    chosen->close_rows(at<const float>(sum), at<const float>(shift), at<const float>(logit), n, rows, rows + n,
                       rows + 2 * n);
}

void pull_rows(const std::string& transform, Address share, Address inverse, Address similarity, Address f_sum,
               Address a_scale, Address c_scale, Address index, int64_t n, float inv_temperature, float margin,
               Address out) {
    float* rows = at<float>(out);  // (3, n): factor, pull, d_inv_temperature
    const fastcse::PullRows work{at<const float>(share),
                                 at<const float>(inverse),
                                 at<const float>(similarity),
                                 at<const float>(f_sum),
                                 at<const float>(a_scale),
                                 at<const float>(c_scale),
                                 at<const int64_t>(index),
                                 n,
                                 inv_temperature,
                                 margin,
                                 rows,
                                 rows + n,
                                 rows + 2 * n};
    py::gil_scoped_release release;
    chosen->pull_rows(transform, work);
}

void finish_rows(Address g, int64_t n, int64_t d, Address factor, Address pull, Address c, int64_t c_stride,
                 Address index, Address x, int64_t x_stride, Address scale, int threads) {
    py::gil_scoped_release release;
    chosen->finish_rows(at<float>(g), n, d, at<const float>(factor), at<const float>(pull), at<const float>(c),
                        c_stride, at<const int64_t>(index), at<const float>(x), x_stride, at<const float>(scale),
                        threads);
}

void scatter_rows(Address g, int64_t d, Address a, int64_t a_stride, Address pull, Address index, int64_t n,
                  bool distinct, int threads) {
    py::gil_scoped_release release;
    chosen->scatter_rows(at<float>(g), d, at<const float>(a), a_stride, at<const float>(pull), at<const int64_t>(index),
                         n, distinct, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "The CPU kernels of fastcse. Addresses and sizes in, results in place; nothing is checked here.";
    fastcse::for_each_usable([](const Functions& table) {
        if (chosen == nullptr) chosen = &table;
    });
    m.attr("panel_rows") = fastcse::panel_rows;
    m.def("isa", [] { return chosen->isa; }, "The instruction set in use.");
    m.def("usable", &usable, "The instruction sets this processor can run, best first.");
    m.def("use", &use, "Runs another instruction set from now on; for tests and measurements.");
    m.def("sweep", &sweep);
    m.def("inverse_norms", &inverse_norms);
    m.def("open_rows", &open_rows);
    m.def("close_rows", &close_rows);
    m.def("pull_rows", &pull_rows);
    m.def("finish_rows", &finish_rows);
    m.def("scatter_rows", &scatter_rows);
    m.def("measure_rows", &measure_rows);
    m.def("select_tile", &run<fastcse::Selection, &Functions::select_tile>);
    m.def("finish_selection", &finish_selection);
    m.def("step_rows", &run<fastcse::StepRows, &Functions::step_rows>);
    m.def("quadruplets", &run<fastcse::Quadruplets, &Functions::quadruplets>);
    m.def("candidate_gradient", &run<fastcse::CandidateGradient, &Functions::candidate_gradient>);
    m.def("assign_rows", &run<fastcse::Assignment, &Functions::assign_rows>);
    m.def("cluster_sums", &run<fastcse::ClusterSums, &Functions::cluster_sums>);
}
