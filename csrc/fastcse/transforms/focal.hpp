// Focal-InfoNCE, negatives: the similarity times itself plus the margin. Hou and Li, arXiv:2310.06918.
#pragma once

namespace FASTCSE_ISA::transforms::focal {

struct Transform {
    static constexpr const char* name = "focal";
    template <class V> static V f(V s, float margin) { return s * (s + margin); }
    template <class V> static V df(V s, float margin) { return s + s + margin; }
};

}  // namespace FASTCSE_ISA::transforms::focal
