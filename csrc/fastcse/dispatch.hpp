// One table of functions per instruction set; the best one that the processor has is chosen when the module is loaded.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "tile.hpp"

namespace fastcse {

struct Functions {
    const char* isa;
    /// Throws std::invalid_argument, naming the transform, if there is none of that name.
    void (*sweep)(const std::string& transform, const Tile&, int threads);
    void (*inverse_norms)(const float* x, int64_t stride, int64_t n, int64_t d, float shortest, float* scale,
                          int threads);
    void (*open_rows)(const std::string& transform, const OpenRows&, int threads);
    void (*close_rows)(const float* sum, const float* shift, const float* logit, int64_t n, float* loss, float* share,
                       float* inverse);
    void (*pull_rows)(const std::string& transform, const PullRows&);
    void (*finish_rows)(float* g, int64_t n, int64_t d, const float* factor, const float* pull, const float* c,
                        int64_t c_stride, const int64_t* index, const float* x, int64_t x_stride, const float* scale,
                        int threads);
    void (*scatter_rows)(float* g, int64_t d, const float* a, int64_t a_stride, const float* pull, const int64_t* index,
                         int64_t n, bool distinct, int threads);
    void (*measure_rows)(const float* x, int64_t stride, int64_t n, int64_t d, double* length, double* cut,
                         int threads);
    void (*select_tile)(const Selection&, int threads);
    void (*finish_selection)(const Selection&, float* value, int64_t* index, int threads);
    void (*step_rows)(const StepRows&, int threads);
    void (*quadruplets)(const Quadruplets&, int threads);
    void (*candidate_gradient)(const CandidateGradient&, int threads);
    void (*assign_rows)(const Assignment&, int threads);
    void (*cluster_sums)(const ClusterSums&, int threads);
};

extern const Functions generic_functions;
#ifdef FASTCSE_X86
extern const Functions avx2_functions;
extern const Functions avx512_functions;
#endif

/// The tables this processor can run, best first.
template <class Fn>
void for_each_usable(Fn&& fn) {
#ifdef FASTCSE_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) fn(avx512_functions);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) fn(avx2_functions);
#endif
    fn(generic_functions);
}

}  // namespace fastcse
