// All kernels for one instruction set: CMake compiles this file once per set, with ALLSIGHT_ISA naming it.
#include "kernels.h"

#include "add_layer_norm.h"
#include "dcnv3.h"
#include "depthwise_norm_act.h"
#include "ms_deform_attn.h"
#include "recolour.h"
#include "resample.h"

namespace allsight {
namespace ALLSIGHT_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    ALLSIGHT_STRINGIFY(ALLSIGHT_ISA),
    {dcnv3_forward<float>, dcnv3_forward<double>},
    {dcnv3_backward<float>, dcnv3_backward<double>},
    {ms_deform_attn_forward<float>, ms_deform_attn_forward<double>},
    {ms_deform_attn_backward<float>, ms_deform_attn_backward<double>},
    {depthwise_norm_act_forward<float>, depthwise_norm_act_forward<double>},
    {add_layer_norm_forward<float>, add_layer_norm_forward<double>},
    {layer_norm_add_forward<float>, layer_norm_add_forward<double>},
    resample_u8,
    recolour_u8,
};

} // namespace ALLSIGHT_ISA
} // namespace allsight
