// All kernels for one instruction set: CMake compiles this file once per set, with ALLSIGHT_ISA naming it.
#include "kernels.h"

#include "dcnv3.h"
#include "ms_deform_attn.h"

namespace allsight {
namespace ALLSIGHT_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    ALLSIGHT_STRINGIFY(ALLSIGHT_ISA),
    {dcnv3_forward<float>, dcnv3_forward<double>},
    {dcnv3_backward<float>, dcnv3_backward<double>},
    {ms_deform_attn_forward<float>, ms_deform_attn_forward<double>},
    {ms_deform_attn_backward<float>, ms_deform_attn_backward<double>},
};

} // namespace ALLSIGHT_ISA
} // namespace allsight
