// InfoNCE: the similarity itself. van den Oord et al., arXiv:1807.03748; SimCSE, arXiv:2104.08821.
#pragma once

namespace FASTCSE_ISA::transforms::scaled {

struct Transform {
    static constexpr const char* name = "scaled";
    template <class V>
    static V f(V s, float) {
        return s;
    }
    template <class V>
    static V df(V s, float) {
        return s * 0.0f + 1.0f;
    }
    template <class V>
    static V f_positive(V s, float) {
        return s;
    }
    template <class V>
    static V df_positive(V s, float) {
        return s * 0.0f + 1.0f;
    }
};

}  // namespace FASTCSE_ISA::transforms::scaled
