// Numbers in bf16, for the kernels that this file stands before.

typedef unsigned short bf16;

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

// To the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    return x != x ? (bf16)0x7fc0 : (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

