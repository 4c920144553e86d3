// Focal-InfoNCE with the modulating weight held constant in the gradient: same value as focal, half-way derivative.
#pragma once

namespace FASTCSE_ISA::transforms::focal_detached {

struct Transform {
    static constexpr const char* name = "focal_detached";
    template <class V> static V f(V s, float margin) { return s * (s + margin); }
    template <class V> static V df(V s, float margin) { return s + margin; }
};

}  // namespace FASTCSE_ISA::transforms::focal_detached
