// Focal-InfoNCE with the modulating weight held constant in the gradient: focal's value, half its derivative.
#pragma once

#include "focal.hpp"

namespace FASTCSE_ISA::transforms::focal_detached {

struct Transform : focal::Transform {
    static constexpr const char* name = "focal_detached";
    template <class V>
    static V df(V s, float margin) {
        return s + margin;
    }
    template <class V>
    static V df_positive(V s, float) {
        return s;
    }
};

}  // namespace FASTCSE_ISA::transforms::focal_detached
