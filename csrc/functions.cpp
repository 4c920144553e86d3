// Compiled once per instruction set, with FASTCSE_ISA (a namespace and a name), FASTCSE_WIDTH (lanes) and the compiler's flags for it.
#include "fastcse/dispatch.hpp"
#include "fastcse/rows.hpp"
#include "fastcse/sweep.hpp"
#include "transforms.inc"  // made by CMake: includes csrc/fastcse/transforms/*.hpp and defines FASTCSE_EACH_TRANSFORM

namespace FASTCSE_ISA {

static void sweep_named(const std::string& name, const Tile& tile, int threads) {
#define FASTCSE_TRY(stem) \
    if (name == transforms::stem::Transform::name) return sweep<transforms::stem::Transform>(tile, threads);
    FASTCSE_EACH_TRANSFORM(FASTCSE_TRY)
#undef FASTCSE_TRY
    throw std::invalid_argument("the C++ module has no transform '" + name + "'");
}

}  // namespace FASTCSE_ISA

#define FASTCSE_NAME_OF(isa) FASTCSE_STRING(isa)
#define FASTCSE_STRING(isa) #isa
#define FASTCSE_TABLE(isa) FASTCSE_JOIN(isa)
#define FASTCSE_JOIN(isa) isa##_functions

namespace fastcse {
const Functions FASTCSE_TABLE(FASTCSE_ISA) = {
    FASTCSE_NAME_OF(FASTCSE_ISA),         ::FASTCSE_ISA::sweep_named, ::FASTCSE_ISA::inverse_norms,
    ::FASTCSE_ISA::paired_similarity, ::FASTCSE_ISA::finish_rows, ::FASTCSE_ISA::scatter_rows,
};
}  // namespace fastcse
