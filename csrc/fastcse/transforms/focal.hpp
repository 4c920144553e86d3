// Focal-InfoNCE: each similarity times itself, negatives with a margin. Hou and Li, arXiv:2310.06918.
#pragma once

namespace FASTCSE_ISA::transforms::focal {

struct Transform {
    static constexpr const char* name = "focal";
    template <class V>
    static V f(V s, float margin) {
        return s * (s + margin);
    }
    template <class V>
    static V df(V s, float margin) {
        return s + s + margin;
    }
    template <class V>
    static V f_positive(V s, float) {
        return s * s;
    }
    template <class V>
    static V df_positive(V s, float) {
        return s + s;
    }
};

}  // namespace FASTCSE_ISA::transforms::focal
