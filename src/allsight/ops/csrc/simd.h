// Vectors of the instruction set a file is compiled for, as GCC and Clang vector extensions.
//
// Kernels are written once against `Vec<T, n>`; kernels.cpp is compiled once per instruction set, and the compiler's
// flags alone decide what a vector becomes. n == 1 is the plain scalar, for widths that nothing else divides.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define ALLSIGHT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ALLSIGHT_VECTOR_BYTES 32
#else
#define ALLSIGHT_VECTOR_BYTES 16
#endif
#define ALLSIGHT_INLINE inline __attribute__((always_inline))
// For loops over pixels: what they are given is then in registers, and not looked up anew as thread-local memory is.
#define ALLSIGHT_APART __attribute__((noinline))

namespace allsight {
namespace ALLSIGHT_ISA {

// Lanes of a whole vector.
template <class T> constexpr int kLanes = ALLSIGHT_VECTOR_BYTES / int(sizeof(T));

template <class T, int n> struct Lanes {
    typedef T Type __attribute__((vector_size(n * sizeof(T))));
};
template <class T> struct Lanes<T, 1> {
    using Type = T;
};
template <class T, int n> using Vec = typename Lanes<T, n>::Type;
template <class T> using Whole = Vec<T, kLanes<T>>;
template <class T> using WholeInt = Vec<int32_t, kLanes<T>>;

// 0, 1, 2, ... by lane.
template <class V, int... j> ALLSIGHT_INLINE V numbered(std::integer_sequence<int, j...>) { return V{j...}; }

template <class V, class T> ALLSIGHT_INLINE V load(const T *from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The first `count` lanes, zero in the others: reads nothing past them. By name where there are loads with a mask: what
// is copied to memory first, in pieces, is slow to read back as a whole.
template <class V, class T> ALLSIGHT_INLINE V load_some(const T *from, int64_t count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return (V)_mm512_maskz_loadu_epi32((1u << count) - 1, from);
    if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return (V)_mm512_maskz_loadu_epi64((1u << count) - 1, from);
#elif defined(__AVX2__)
    if constexpr (sizeof(V) == 32) {
        using Int = std::conditional_t<sizeof(T) == 4, int, long long>;
        typedef Int Mask __attribute__((vector_size(32)));
        const Mask mask = numbered<Mask>(std::make_integer_sequence<int, 32 / int(sizeof(T))>{}) < (Int)count;
        if constexpr (sizeof(T) == 4) return (V)_mm256_maskload_epi32((const Int *)from, (__m256i)mask);
        if constexpr (sizeof(T) == 8) return (V)_mm256_maskload_epi64((const Int *)from, (__m256i)mask);
    }
#endif
    V v = {};
    std::memcpy(&v, from, (size_t)count * sizeof(T));
    return v;
}

template <class V, class T> ALLSIGHT_INLINE void store(T *to, V v) { std::memcpy(to, &v, sizeof v); }

template <class T> ALLSIGHT_INLINE Whole<T> splat(T x) { return x - Whole<T>{}; }
template <class T> ALLSIGHT_INLINE WholeInt<T> splat_int(int32_t x) { return x - WholeInt<T>{}; }
template <class T> ALLSIGHT_INLINE Whole<T> to_real(WholeInt<T> v) { return __builtin_convertvector(v, Whole<T>); }
template <class T> ALLSIGHT_INLINE WholeInt<T> to_int(Whole<T> v) { return __builtin_convertvector(v, WholeInt<T>); }

// Whether the sign bit of any lane is set.
template <class I> ALLSIGHT_INLINE bool any_negative(I v) {
#if defined(__AVX512F__)
    if constexpr (sizeof v == 64) return _mm512_movepi32_mask((__m512i)v) != 0;
#endif
#if defined(__AVX2__)
    if constexpr (sizeof v == 32) return _mm256_movemask_ps((__m256)v) != 0;
#endif
#if defined(__SSE2__)
    if constexpr (sizeof v == 16) return _mm_movemask_ps((__m128)v) != 0;
#endif
    int32_t all = 0;
    for (unsigned lane = 0; lane < sizeof v / sizeof all; ++lane) all |= v[lane];
    return all < 0;
}

// A whole vector of bytes in memory as integers; values are 0 to 255. By name, since GCC takes a conversion
// between sizes this different apart, lane by lane.
ALLSIGHT_INLINE WholeInt<float> load_bytes(const uint8_t *from) {
#if defined(__AVX512F__)
    // With a mask, since GCC 12 takes the plain forms of its own headers for the use of what was never set.
    return (WholeInt<float>)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i *)from));
#elif defined(__AVX2__)
    return (WholeInt<float>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#elif defined(__SSE2__)
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    const __m128i zero = _mm_setzero_si128(), pairs = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero);
    return (WholeInt<float>)_mm_unpacklo_epi16(pairs, zero);
#else
    WholeInt<float> v;
    for (int lane = 0; lane < kLanes<float>; ++lane) v[lane] = from[lane];
    return v;
#endif
}

// 16 integers, in as many vectors as they take, as bytes. In a register: stores narrower than what is loaded next make
// that load wait.
using Bytes = Vec<uint8_t, 16>;
ALLSIGHT_INLINE Bytes to_bytes(const WholeInt<float> *v) {
#if defined(__AVX512F__)
    return (Bytes)_mm512_maskz_cvtepi32_epi8(0xFFFF, (__m512i)v[0]);
#elif defined(__AVX2__)
    const __m256i turns = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]), pairs = _mm256_permute4x64_epi64(turns, 0xD8);
    return (Bytes)_mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
#elif defined(__SSE2__)
    const __m128i first = _mm_packs_epi32((__m128i)v[0], (__m128i)v[1]);
    return (Bytes)_mm_packus_epi16(first, _mm_packs_epi32((__m128i)v[2], (__m128i)v[3]));
#else
    Bytes bytes;
    for (int lane = 0; lane < 16; ++lane) bytes[lane] = (uint8_t)v[lane / kLanes<float>][lane % kLanes<float>];
    return bytes;
#endif
}

// Lane j of the result is lane Index::of(j) of a and b side by side.
template <class Index, class V, int... j> ALLSIGHT_INLINE V pick(V a, V b, std::integer_sequence<int, j...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, Index::of(j)...);
#else
    using Int = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
    typedef Int Order __attribute__((vector_size(sizeof(V))));
    return __builtin_shuffle(a, b, Order{Index::of(j)...});
#endif
}
template <class Index, class V> ALLSIGHT_INLINE V pick(V a, V b) {
    return pick<Index>(a, b, std::make_integer_sequence<int, int(sizeof(V) / sizeof(a[0]))>{});
}

// Every second lane of a and b side by side, from the first (start 0) or the second (start 1) on.
template <int start> struct EverySecond {
    static constexpr int of(int lane) { return 2 * lane + start; }
};

// Lanes of the first (or second) halves of a and b in turns.
template <int n, bool second> struct InTurns {
    static constexpr int of(int lane) { return (lane % 2 ? n : 0) + (second ? n / 2 : 0) + lane / 2; }
};

// Store n times four numbers: the lanes of a, b, c and d in turns.
template <class T> ALLSIGHT_INLINE void interleave_four(T *to, Whole<T> a, Whole<T> b, Whole<T> c, Whole<T> d) {
    constexpr int n = kLanes<T>;
    const Whole<T> ac = pick<InTurns<n, false>>(a, c), bd = pick<InTurns<n, false>>(b, d);
    const Whole<T> more_ac = pick<InTurns<n, true>>(a, c), more_bd = pick<InTurns<n, true>>(b, d);
    store(to, pick<InTurns<n, false>>(ac, bd)), store(to + n, pick<InTurns<n, true>>(ac, bd));
    store(to + 2 * n, pick<InTurns<n, false>>(more_ac, more_bd));
    store(to + 3 * n, pick<InTurns<n, true>>(more_ac, more_bd));
}

// Four numbers, each in all lanes of a vector.
template <class V> struct Four {
    V a, b, c, d;
};

// Lane `which` of each four lanes.
template <int which> struct OfFour {
    static constexpr int of(int lane) { return lane / 4 * 4 + which; }
};

#if defined(__clang__) || __GNUC__ >= 12
template <class V, class T, int... j> ALLSIGHT_INLINE V repeat_four(const T *from, std::integer_sequence<int, j...>) {
#if defined(__AVX512F__)
    // By name, since GCC 12 spreads four lanes over sixteen through memory, where a wide load waits for narrow stores.
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return (V)_mm512_maskz_broadcast_f32x4(0xFFFF, _mm_loadu_ps(from));
    if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return (V)_mm512_maskz_broadcast_f64x4(0xFF, _mm256_loadu_pd(from));
#endif
    const auto four = load<Vec<T, 4>>(from);
    return __builtin_shufflevector(four, four, (j % 4)...);
}
#endif

// Four neighbours in memory. They are read at once and spread in registers: what mixes is short of loads.
template <class V, class T> ALLSIGHT_INLINE Four<V> splat_four(const T *from) {
#if defined(__clang__) || __GNUC__ >= 12
    constexpr int n = int(sizeof(V) / sizeof(T));
    if constexpr (n % 4 == 0) {
        const V all = repeat_four<V>(from, std::make_integer_sequence<int, n>{});
        return {pick<OfFour<0>>(all, all), pick<OfFour<1>>(all, all), pick<OfFour<2>>(all, all),
                pick<OfFour<3>>(all, all)};
    }
#endif
    return {from[0] - V{}, from[1] - V{}, from[2] - V{}, from[3] - V{}};
}

// Every lane from the one `distance` away, pairwise.
template <int distance> struct Swapped {
    static constexpr int of(int lane) { return lane ^ distance; }
};

// In each segment, its first half from a and its second from b.
template <int n, int segment> struct HalfOfEach {
    static constexpr int of(int lane) { return lane % segment < segment / 2 ? lane : n + lane; }
};

// The first lane of each segment, in turns.
template <int n, int segment> struct FirstOfEach {
    static constexpr int of(int lane) { return lane * segment % n; }
};

// Sums over the lanes of `count` vectors at once: the lanes of each segment of n / count lanes of the result are the sum
// over one of them, in their order. A level adds halves of ever shorter segments of two vectors and then, when there is
// one vector left, of itself, so that n sums take n - 1 additions; the order of additions does not depend on `count`.
// Halves that stay where they are cost no shuffle.
template <class T, int n, int count, int segment = n> ALLSIGHT_INLINE Vec<T, n> sums_of(Vec<T, n> *in) {
    using V = Vec<T, n>;
    if constexpr (segment == 1) {
        return in[0];
    } else if constexpr (count == 1) {
        in[0] += pick<Swapped<segment / 2>>(in[0], in[0]);
        return sums_of<T, n, 1, segment / 2>(in);
    } else {
        for (int i = 0; i < count / 2; ++i) {
            const V a = in[i], b = in[i + count / 2];
            const V kept = pick<HalfOfEach<n, segment>>(a, b), moved = pick<HalfOfEach<n, segment>>(b, a);
            in[i] = kept + pick<Swapped<segment / 2>>(moved, moved);
        }
        return sums_of<T, n, count / 2, segment / 2>(in);
    }
}

// Store the sums over the lanes of each of `count` vectors, a power of two or some times n.
template <class T, int n, int count> ALLSIGHT_INLINE void store_sums(T *to, Vec<T, n> *in) {
    if constexpr (count >= n) {
        for (int i = 0; i < count; i += n) store(to + i, sums_of<T, n, n>(in + i));
    } else {
        const auto sums = sums_of<T, n, count>(in);
        const auto packed = pick<FirstOfEach<n, n / count>>(sums, sums);
        std::memcpy(to, &packed, count * sizeof(T));
    }
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
