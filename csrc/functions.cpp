// Compiled once per instruction set, with FASTCSE_ISA (a namespace and a name), FASTCSE_WIDTH (lanes) and the
// compiler's flags for it.
#include "fastcse/assign.hpp"
#include "fastcse/dispatch.hpp"
#include "fastcse/quadruplet.hpp"
#include "fastcse/rows.hpp"
#include "fastcse/select.hpp"
#include "fastcse/sweep.hpp"
#include "transforms.inc"  // made by CMake: includes csrc/fastcse/transforms/*.hpp and defines FASTCSE_EACH_TRANSFORM

namespace FASTCSE_ISA {

/// Calls `fn` with the transform called `name`. The one list of transforms in C++ is the folder
/// csrc/fastcse/transforms.
template <class Fn>
void with_transform(const std::string& name, Fn&& fn) {
#define FASTCSE_TRY(stem) \
    if (name == transforms::stem::Transform::name) return fn(transforms::stem::Transform{});
    FASTCSE_EACH_TRANSFORM(FASTCSE_TRY)
#undef FASTCSE_TRY
    throw std::invalid_argument("the C++ module has no transform '" + name + "'");
}

static void sweep_named(const std::string& name, const Tile& tile, int threads) {
    with_transform(name, [&](auto transform) { sweep<decltype(transform)>(tile, threads); });
}

static void open_named(const std::string& name, const fastcse::OpenRows& rows, int threads) {
    with_transform(name, [&](auto transform) { open_rows<decltype(transform)>(rows, threads); });
}

static void pull_named(const std::string& name, const fastcse::PullRows& rows) {
    with_transform(name, [&](auto transform) { pull_rows<decltype(transform)>(rows); });
}

}  // namespace FASTCSE_ISA

#define FASTCSE_NAME_OF(isa) FASTCSE_STRING(isa)
#define FASTCSE_STRING(isa) #isa
#define FASTCSE_TABLE(isa) FASTCSE_JOIN(isa)
#define FASTCSE_JOIN(isa) isa##_functions

namespace fastcse {
const Functions FASTCSE_TABLE(FASTCSE_ISA) = {
    FASTCSE_NAME_OF(FASTCSE_ISA), ::FASTCSE_ISA::sweep_named,        ::FASTCSE_ISA::inverse_norms,
    ::FASTCSE_ISA::open_named,    ::FASTCSE_ISA::close_rows,         ::FASTCSE_ISA::pull_named,
    ::FASTCSE_ISA::finish_rows,   ::FASTCSE_ISA::scatter_rows,       ::FASTCSE_ISA::measure_rows,
    ::FASTCSE_ISA::select_tile,   ::FASTCSE_ISA::finish_selection,   ::FASTCSE_ISA::step_rows,
    ::FASTCSE_ISA::quadruplets,   ::FASTCSE_ISA::candidate_gradient, ::FASTCSE_ISA::assign_rows,
    ::FASTCSE_ISA::cluster_sums,
};
}  // namespace fastcse
