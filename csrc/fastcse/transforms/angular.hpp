// InfoNCE with an angular margin m on negatives, cos(acos(s) - m) where the angle is wider than m. KDMCSE,
// arXiv:2403.17486. The margin that arrives is tan(m / 2).
#pragma once

#include "../vec.hpp"
#include "scaled.hpp"

namespace FASTCSE_ISA::transforms::angular {

/// Cosine and sine of the angle whose half has tangent t.
struct Turn {
    explicit Turn(float t) : cosine((1.0f - t * t) / (1.0f + t * t)), sine((t + t) / (1.0f + t * t)) {}
    float cosine, sine;
};

/// The least that 1 - s^2 is taken for: its root's slope has no bound at s = -1.
constexpr float least = 1e-6f;

struct Transform : scaled::Transform {
    static constexpr const char* name = "angular";
    template <class V>
    static V f(V s, float margin) {
        const Turn m(margin);
        const V q = (1.0f - s) * (1.0f + s);
        const V closer = s * m.cosine + sqrt(q > least ? q : V{} + least) * m.sine;
        // A NaN fails every comparison: it comes back as the s it is.
        return s < m.cosine ? closer : s;
    }
    template <class V>
    static V df(V s, float margin) {
        const Turn m(margin);
        const V q = (1.0f - s) * (1.0f + s), inside = q > least ? s : V{};
        const V slope = m.cosine - inside * m.sine / sqrt(q > least ? q : V{} + least);
        return s < m.cosine ? slope : s * 0.0f + 1.0f;
    }
};

}  // namespace FASTCSE_ISA::transforms::angular
