// The table of kernels that each instruction set fills.
#pragma once

#include "abi.h"
#include "resample_taps.h"

#define ALLSIGHT_STRINGIFY_(x) #x
#define ALLSIGHT_STRINGIFY(x) ALLSIGHT_STRINGIFY_(x)

namespace allsight {

// One operator in the types it exists for.
template <class Call> struct Typed {
    int (*f32)(const Call &);
    int (*f64)(const Call &);
};

struct Kernels {
    const char *name;
    Typed<allsight_dcnv3> dcnv3_forward, dcnv3_backward;
    Typed<allsight_ms_deform_attn> ms_deform_attn_forward, ms_deform_attn_backward;
    Typed<allsight_depthwise_norm_act> depthwise_norm_act_forward;
    Typed<allsight_add_layer_norm> add_layer_norm_forward, layer_norm_add_forward;
    int (*resample_u8)(const allsight_resample &, const Taps &rows, const Taps &columns);
    int (*recolour_u8)(const allsight_recolour &);
};

} // namespace allsight
