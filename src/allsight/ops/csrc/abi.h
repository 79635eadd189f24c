// The plain C interface of the kernels: what Python fills in and passes by pointer (ops/_native.py mirrors it).
//
// Everything is a number or a pointer, so nothing here needs Python or PyTorch to build, and one library serves
// all their versions. Callers have checked shapes, types and contiguity; the kernels check nothing but memory.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

enum allsight_status { ALLSIGHT_OK = 0, ALLSIGHT_NO_MEMORY = 1 };

// DCNv3 and DCNv4: see ops/dcnv3/__init__.py for the formula. All tensors are of one type, float or double.
struct allsight_dcnv3 {
    int64_t batch, height, width, groups, group_channels, rows, columns, points;
    int64_t stride_h, stride_w;
    int64_t origin_h, origin_w;     // where the middle of the kernel of output pixel (0, 0) lies in the input
    int64_t offset_step, mask_step; // values from one output pixel to the next
    int64_t softmax;                // 1: `mask` holds logits, normalised here over the points of a group
    int64_t threads;
    double offset_scale;
    const void *taps;               // [points, 2] displacement (x, y) of each point from the middle at zero offset
    const void *value;              // [batch, height, width, groups * group_channels]
    const void *offset;             // [batch, rows, columns, >= groups * points * 2]
    const void *mask;               // [batch, rows, columns, >= groups * points]
    void *out;                      // forward: like value, of size rows x columns
    const void *grad_out;           // backward: gradient of out; the gradients below are dense
    void *grad_value, *grad_offset, *grad_mask;
};

// Multi-scale deformable attention: see ops/ms_deform_attn/__init__.py.
struct allsight_ms_deform_attn {
    int64_t batch, pixels, heads, head_channels, queries, levels, points;
    int64_t softmax; // 1: `weights` holds logits, normalised here over levels and points
    int64_t threads;
    const int64_t *shapes;  // [levels, 2] (height, width)
    const void *value;      // [batch, pixels, heads, head_channels]
    const void *locations;  // [batch, queries, heads, levels, points, 2] (x, y) in 0..1
    const void *weights;    // [batch, queries, heads, levels, points]
    void *out;              // [batch, queries, heads * head_channels]
    const void *grad_out;
    void *grad_value, *grad_locations, *grad_weights;
};

// Depth-wise convolution (odd square kernel, stride 1, zeros around the map), layer norm over the channels, activation.
struct allsight_depthwise_norm_act {
    int64_t batch, height, width, channels, kernel;
    int64_t act; // 0 none, 1 relu, 2 silu, 3 gelu (erf)
    int64_t weight_channel_step, weight_tap_step; // from one channel, or tap in reading order, to the next
    int64_t threads;
    double eps;
    const void *x;      // [batch, height, width, channels]
    const void *weight; // [channels, kernel * kernel] by the steps above
    const void *bias;   // [channels] or null
    const void *norm_weight, *norm_bias;
    void *out;
};

// add_layer_norm: sum = residual + scale * branch, out = norm(sum). layer_norm_add: sum = residual + scale * norm(branch).
struct allsight_add_layer_norm {
    int64_t pixels, channels;
    int64_t threads;
    double eps;
    const void *residual, *branch; // [pixels, channels]
    const void *scale;             // [channels] or null
    const void *norm_weight, *norm_bias;
    void *sum, *out; // [pixels, channels]; out only for add_layer_norm
};

// A window of a picture of three bytes a pixel, resized bilinearly with antialiasing: see ops/resample.py.
struct allsight_resample {
    int64_t height, width;         // of the window
    int64_t out_height, out_width;
    int64_t row_step;              // bytes from one row of the picture to the next
    int64_t mirrored;              // 1: left and right of the result are exchanged
    const void *pixels;            // the window's first byte
    void *out;                     // [out_height, out_width, 3]
};

// A picture of three bytes a pixel in other colours: see ops/recolour.py. Shifts are in 1/128 of a level, factors in
// 2^-14, the turn around the circle of hues in 2^-14 of a sixth of it.
struct allsight_recolour {
    int64_t count;                     // pixels
    int64_t shift, first_factor;       // on all values, in this order, before hue and saturation
    int64_t turn, saturation;
    int64_t last_factor;               // on all values, afterwards
    int64_t red, green, blue;          // which changed channel each one becomes
    const void *pixels;                // [count, 3]
    void *out;
};

// Version of this interface; Python refuses a library that says another one.
int allsight_abi_version(void);
// The instruction sets this library was built with and this processor has, best first: "avx512 avx2 generic".
const char *allsight_isas(void);
// Forces one of them by name; 0 if it cannot be had.
int allsight_use_isa(const char *name);
const char *allsight_isa(void);
// Whether PyTorch's OpenMP pool was found; without it everything runs on one thread.
int allsight_has_threads(void);

int allsight_dcnv3_forward_f32(const allsight_dcnv3 *);
int allsight_dcnv3_forward_f64(const allsight_dcnv3 *);
int allsight_dcnv3_backward_f32(const allsight_dcnv3 *);
int allsight_dcnv3_backward_f64(const allsight_dcnv3 *);
int allsight_ms_deform_attn_forward_f32(const allsight_ms_deform_attn *);
int allsight_ms_deform_attn_forward_f64(const allsight_ms_deform_attn *);
int allsight_ms_deform_attn_backward_f32(const allsight_ms_deform_attn *);
int allsight_ms_deform_attn_backward_f64(const allsight_ms_deform_attn *);
int allsight_depthwise_norm_act_forward_f32(const allsight_depthwise_norm_act *);
int allsight_depthwise_norm_act_forward_f64(const allsight_depthwise_norm_act *);
int allsight_add_layer_norm_forward_f32(const allsight_add_layer_norm *);
int allsight_add_layer_norm_forward_f64(const allsight_add_layer_norm *);
int allsight_layer_norm_add_forward_f32(const allsight_add_layer_norm *);
int allsight_layer_norm_add_forward_f64(const allsight_add_layer_norm *);
int allsight_resample_u8(const allsight_resample *);
int allsight_recolour_u8(const allsight_recolour *);
}
#pragma GCC visibility pop
