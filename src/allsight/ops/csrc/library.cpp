// The C interface: choice of the instruction set, PyTorch's threads, and one function per kernel.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstring>
#include <new>
#include <string>

#include "kernels.h"
#include "threads.h"

namespace allsight {

namespace generic { extern const Kernels kernels; }
#ifdef ALLSIGHT_HAS_AVX2
namespace avx2 { extern const Kernels kernels; }
#endif
#ifdef ALLSIGHT_HAS_AVX512
namespace avx512 { extern const Kernels kernels; }
#endif

namespace {

// The sets this processor has, best first, null at the end.
const Kernels *const *usable() {
    static const Kernels *found[4] = {};
    static const bool once = [] {
        int count = 0;
#ifdef ALLSIGHT_HAS_AVX512
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
            found[count++] = &avx512::kernels;
#endif
#ifdef ALLSIGHT_HAS_AVX2
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &avx2::kernels;
#endif
        found[count] = &generic::kernels;
        return true;
    }();
    (void)once;
    return found;
}

std::atomic<const Kernels *> forced{nullptr};

const Kernels &chosen() {
    const Kernels *wish = forced.load(std::memory_order_relaxed);
    return wish ? *wish : *usable()[0];
}

// The part of GCC's OpenMP interface that GCC's and LLVM's libraries share.
struct Pool {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread)(void);
    int (*threads)(void);
};

std::atomic<bool> is_forked_child{false};

const Pool &pool() {
    static const Pool found = [] {
        pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
        Pool p = {};
        p.parallel = (decltype(p.parallel))dlsym(RTLD_DEFAULT, "GOMP_parallel");
        p.thread = (decltype(p.thread))dlsym(RTLD_DEFAULT, "omp_get_thread_num");
        p.threads = (decltype(p.threads))dlsym(RTLD_DEFAULT, "omp_get_num_threads");
        if (!p.thread || !p.threads) p.parallel = nullptr;
        return p;
    }();
    return found;
}

} // namespace

void run_on_threads(int64_t threads, void (*work)(void *, int64_t, int64_t), void *context) {
    const Pool &p = pool();
    if (threads < 1) return;
    if (threads == 1 || !p.parallel || is_forked_child) return work(context, 0, 1);
    struct Shared {
        void (*work)(void *, int64_t, int64_t);
        void *context;
        const Pool &pool;
    } shared{work, context, p};
    p.parallel(
        [](void *pointer) {
            const Shared &s = *(Shared *)pointer;
            s.work(s.context, s.pool.thread(), s.pool.threads());
        },
        &shared, (unsigned)threads, 0);
}

} // namespace allsight

extern "C" {

int allsight_abi_version(void) { return 4; }

const char *allsight_isas(void) {
    static const std::string names = [] {
        std::string all;
        for (const allsight::Kernels *const *k = allsight::usable(); *k; ++k) all += (all.empty() ? "" : " ") + std::string((*k)->name);
        return all;
    }();
    return names.c_str();
}

int allsight_use_isa(const char *name) {
    for (const allsight::Kernels *const *k = allsight::usable(); *k; ++k)
        if (!std::strcmp((*k)->name, name)) {
            allsight::forced = *k;
            return 1;
        }
    return 0;
}

const char *allsight_isa(void) { return allsight::chosen().name; }

int allsight_has_threads(void) { return allsight::pool().parallel != nullptr; }

#define ALLSIGHT_DEFINE(call, kernel)                                                                                  \
    int allsight_##kernel##_f32(const call *c) { return allsight::chosen().kernel.f32(*c); }                           \
    int allsight_##kernel##_f64(const call *c) { return allsight::chosen().kernel.f64(*c); }
ALLSIGHT_DEFINE(allsight_dcnv3, dcnv3_forward)
ALLSIGHT_DEFINE(allsight_dcnv3, dcnv3_backward)
ALLSIGHT_DEFINE(allsight_ms_deform_attn, ms_deform_attn_forward)
ALLSIGHT_DEFINE(allsight_ms_deform_attn, ms_deform_attn_backward)
ALLSIGHT_DEFINE(allsight_depthwise_norm_act, depthwise_norm_act_forward)
ALLSIGHT_DEFINE(allsight_add_layer_norm, add_layer_norm_forward)
ALLSIGHT_DEFINE(allsight_add_layer_norm, layer_norm_add_forward)

int allsight_resample_u8(const allsight_resample *c) {
    static thread_local allsight::TapTable rows, columns;
    try {
        const allsight::Taps down = rows.fill(c->height, c->out_height, false);
        const allsight::Taps across = columns.fill(c->width, c->out_width, c->mirrored != 0);
        return allsight::chosen().resample_u8(*c, down, across);
    } catch (const std::bad_alloc &) {
        return ALLSIGHT_NO_MEMORY;
    }
}

int allsight_recolour_u8(const allsight_recolour *c) { return allsight::chosen().recolour_u8(*c); }
}
