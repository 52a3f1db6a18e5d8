// Vectors of the width that this translation unit is compiled for, and the functions of them that
// the kernels need. GCC and Clang vector extensions only: the same source for AVX-512, AVX2, NEON.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif

namespace simd {

template <class T> struct Types;

template <> struct Types<float> {
    typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
    typedef float unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES)));
};

template <> struct Types<double> {
    typedef double vec __attribute__((vector_size(VECTOR_BYTES)));
    typedef double unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t ivec __attribute__((vector_size(VECTOR_BYTES)));
};

template <class T> using Vec = typename Types<T>::vec;
template <class T> using IVec = typename Types<T>::ivec;
template <class T> constexpr int width = VECTOR_BYTES / int(sizeof(T));

template <class T> inline Vec<T> splat(T x) { return Vec<T>{} + x; }

template <class T> inline Vec<T> load(const T *p) {
    return *reinterpret_cast<const typename Types<T>::unaligned *>(p);
}

template <class T> inline void store(T *p, Vec<T> x) {
    *reinterpret_cast<typename Types<T>::unaligned *>(p) = x;
}

// The first `count` elements only; the others are zero, or left alone.
template <class T> inline Vec<T> load(const T *p, int count) {
    if (count >= width<T>) return load(p);
    Vec<T> x{};
    std::memcpy(&x, p, count * sizeof(T));
    return x;
}

template <class T> inline void store(T *p, Vec<T> x, int count) {
    if (count >= width<T>)
        store(p, x);
    else
        std::memcpy(p, &x, count * sizeof(T));
}

template <class T> inline T sum(Vec<T> x) {
    T total = 0;
    for (int i = 0; i < width<T>; ++i) total += x[i];
    return total;
}

template <class T> inline Vec<T> max(Vec<T> a, Vec<T> b) { return a > b ? a : b; }
template <class T> inline Vec<T> min(Vec<T> a, Vec<T> b) { return a < b ? a : b; }

// The same with an instruction or few where compilers do not find them.
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
template <> inline float sum<float>(Vec<float> x) { return _mm512_reduce_add_ps((__m512)x); }
template <> inline double sum<double>(Vec<double> x) { return _mm512_reduce_add_pd((__m512d)x); }
#endif

// 1 / (1 + exp(-x)), absolute error of 1e-7 or less.
inline Vec<float> sigmoid(Vec<float> x) {
    x = max<float>(min<float>(x, splat(80.0f)), splat(-80.0f));
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vec<float> n = x * -1.44269504088896341f + shift;
    IVec<float> bits = (IVec<float>)n << 23;
    n -= shift;
    // 2^f for |f| <= 1/2, by the polynomial of the least relative error, 2e-7 in float32.
    Vec<float> f = x * -1.44269504088896341f - n;
    Vec<float> y = splat(1.3276472e-3f);
    y = y * f + 9.6755410e-3f;
    y = y * f + 5.5507131e-2f;
    y = y * f + 2.4022120e-1f;
    y = y * f + 6.9314694e-1f;
    y = y * f + 1.0f;
    return 1.0f / ((Vec<float>)((IVec<float>)y + bits) + 1.0f);
}

inline Vec<double> exp(Vec<double> x) {
    x = max<double>(min<double>(x, splat(709.0)), splat(-708.0));
    const double shift = 6755399441055744.0;  // 1.5 * 2^52
    Vec<double> n = x * 1.4426950408889634074 + shift;
    IVec<double> bits = (IVec<double>)n << 52;
    n -= shift;
    Vec<double> r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
    // Taylor: |r| <= ln(2)/2, the first term left out is below 1e-17.
    Vec<double> y = splat(1.0 / 6227020800.0);
    y = y * r + 1.0 / 479001600.0;
    y = y * r + 1.0 / 39916800.0;
    y = y * r + 1.0 / 3628800.0;
    y = y * r + 1.0 / 362880.0;
    y = y * r + 1.0 / 40320.0;
    y = y * r + 1.0 / 5040.0;
    y = y * r + 1.0 / 720.0;
    y = y * r + 1.0 / 120.0;
    y = y * r + 1.0 / 24.0;
    y = y * r + 1.0 / 6.0;
    y = y * r + 0.5;
    y = y * r * r + r + 1.0;
    return (Vec<double>)((IVec<double>)y + bits);
}

inline Vec<double> sigmoid(Vec<double> x) { return 1.0 / (exp(-x) + 1.0); }

}  // namespace simd
