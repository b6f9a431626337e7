// The set of loops over a vector type V, and which of the two layouts attention has. Constant of V:
//   ATTEND_FROM   alora_kernels::attend_rows
#pragma once

#include "alora-attention-lane-major.h"
#include "alora-attention-row-major.h"
#include "alora-kernels-loops.h"

namespace {

template <class V> void attend(const alora_attend & op) {
    if (op.n_tokens * op.group <= V::FEW_ROWS) {
        attend_row_major<V>(op);
    } else {
        attend_lane_major<V>(op);
    }
}

template <class V> void combine(const alora_splits & op) {
    if (op.n_rows <= V::FEW_ROWS) {
        combine_row_major<V>(op);
    } else {
        combine_lane_major<V>(op);
    }
}

template <class V> constexpr alora_kernels kernels_of(const char * name) {
    return { name, shrink<V>, expand<V>, attend<V>, combine<V>, V::ATTEND_FROM };
}

}  // namespace
