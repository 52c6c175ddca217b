// The rows of a chunk's logits, [n, V]: their scores, and then the loss's gradient by them, where they stand.
//
// Launch shape of every kernel: one block a row (grid n), 32 to 1024 threads in whole warps (512 do well from V = 16k
// on), no dynamic shared memory. A row is read from global memory in steps of 8 entries a thread, so V may be anything;
// rows that begin at 16 bytes are read and written 16 bytes at a time. n = 0 must not be launched.
//
// Between the two kernels stands the loss, which makes grad_logp and grad_entropy of logp and entropy.
//
// Logits in single precision (bf16 operands, f32 out) are exact to rounding. Of logits in bf16 only the target's is: it
// is computed again as a dot product, in single precision, and stands in its place in the sum too, so that no
// log-probability is above 0. All others are off by up to 2^-9 of their size, and the normaliser with them; wherever
// logits near 20 compete that is 0.03 and more. Use bf16 only where that is good enough.

typedef unsigned short bf16;
typedef long long i64;

constexpr int STEP = 8;
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x << 16); }

__device__ __forceinline__ void store(float *at, float x) { *at = x; }
// To the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ void store(bf16 *at, float x) {
    unsigned bits = __float_as_uint(x);
    *at = x != x ? (bf16)0x7fc0 : (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ bool aligned(const void *at) { return ((unsigned long long)at & 15) == 0; }

// 16 bytes, the widest access there is.
struct alignas(16) Wide {
    unsigned words[4];
};

// Up to STEP entries from `first` on; what lies past the row is -inf, which adds nothing.
template <typename T> __device__ __forceinline__ void load(const T *row, i64 first, i64 vocabulary, float *entries) {
    if (first + STEP <= vocabulary && aligned(row + first)) {
        constexpr int PER = 16 / sizeof(T);
        for (int part = 0; part < STEP / PER; part++) {
            Wide wide = *(const Wide *)(row + first + part * PER);
            const T *own = (const T *)&wide;
            for (int k = 0; k < PER; k++) entries[part * PER + k] = to_float(own[k]);
        }
    } else {
        for (int k = 0; k < STEP; k++) entries[k] = first + k < vocabulary ? to_float(row[first + k]) : -infinity();
    }
}

template <typename T> __device__ __forceinline__ void save(T *row, i64 first, i64 vocabulary, const float *entries) {
    if (first + STEP <= vocabulary && aligned(row + first)) {
        constexpr int PER = 16 / sizeof(T);
        for (int part = 0; part < STEP / PER; part++) {
            Wide wide;
            for (int k = 0; k < PER; k++) store((T *)&wide + k, entries[part * PER + k]);
            *(Wide *)(row + first + part * PER) = wide;
        }
    } else {
        for (int k = 0; k < STEP && first + k < vocabulary; k++) store(row + first + k, entries[k]);
    }
}

// Some entries z: the largest, m; the sum of exp(z - m); the sum of exp(z - m) (z - m).
struct Running {
    float largest, sum, weighted;
};

// The sums of another, larger m. Of no entries yet, m = -inf, they are 0 and stay so.
__device__ __forceinline__ Running raised(Running r, float largest) {
    if (r.largest == largest || r.largest == -infinity()) return Running{largest, r.sum, r.weighted};
    float by = r.largest - largest, factor = __expf(by);
    return Running{largest, r.sum * factor, (r.weighted + by * r.sum) * factor};
}

__device__ __forceinline__ Running joined(Running a, Running b) {
    float largest = a.largest > b.largest ? a.largest : b.largest;
    a = raised(a, largest), b = raised(b, largest);
    return Running{largest, a.sum + b.sum, a.weighted + b.weighted};
}

__device__ __forceinline__ Running with(Running r, const float *entries) {
    float largest = r.largest;
    for (int k = 0; k < STEP; k++) largest = entries[k] > largest ? entries[k] : largest;
    r = raised(r, largest);
    for (int k = 0; k < STEP; k++) {
        // An entry that is ruled out adds nothing; NaN is no such entry and spoils the row.
        if (entries[k] == -infinity()) continue;
        float shifted = entries[k] - largest, share = __expf(shifted);
        r.sum += share, r.weighted += share * shifted;
    }
    return r;
}

// Over the block; every thread gets it.
__device__ Running over_block(Running r) {
    __shared__ Running of_warps[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int away = 16; away > 0; away >>= 1)
        r = joined(r, Running{__shfl_xor_sync(ALL, r.largest, away), __shfl_xor_sync(ALL, r.sum, away),
                              __shfl_xor_sync(ALL, r.weighted, away)});
    __syncthreads(); // whoever called before has read
    if (lane == 0) of_warps[warp] = r;
    __syncthreads();
    r = of_warps[0];
    for (int other = 1; other < warps; other++) r = joined(r, of_warps[other]);
    return r;
}

// The dot product of two rows in single precision, over the block; every thread gets it.
__device__ float dot(const bf16 *a, const bf16 *b, int width) {
    __shared__ float of_warps[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    float sum = 0.0f;
    for (int k = threadIdx.x; k < width; k += blockDim.x) sum += to_float(a[k]) * to_float(b[k]);
    for (int away = 16; away > 0; away >>= 1) sum += __shfl_xor_sync(ALL, sum, away);
    __syncthreads();
    if (lane == 0) of_warps[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int other = 0; other < warps; other++) sum += of_warps[other];
    return sum;
}

// STEP entries of a row over the temperature, with the target's in its place.
template <typename T>
__device__ __forceinline__ void tempered(const T *row, i64 first, i64 vocabulary, float inverse_temperature,
                                         i64 target, float chosen, float *entries) {
    load(row, first, vocabulary, entries);
    for (int k = 0; k < STEP; k++) entries[k] = first + k == target ? chosen : entries[k] * inverse_temperature;
}

template <typename T>
__device__ void scores(const T *row, i64 vocabulary, float inverse_temperature, i64 target, float chosen, float *logp,
                       float *entropy, float *log_sum_exp, float *chosen_out) {
    Running r = {-infinity(), 0.0f, 0.0f};
    for (i64 first = (i64)threadIdx.x * STEP; first < vocabulary; first += (i64)blockDim.x * STEP) {
        float entries[STEP];
        tempered(row, first, vocabulary, inverse_temperature, target, chosen, entries);
        r = with(r, entries);
    }
    r = over_block(r);
    if (threadIdx.x == 0) {
        float log_sum = logf(r.sum);
        *logp = (chosen - r.largest) - log_sum;
        *entropy = log_sum - r.weighted / r.sum;
        *log_sum_exp = r.largest + log_sum;
        *chosen_out = chosen;
    }
}

// In place or not: a thread's entries are read before any thread of the block writes over them, also where bf16 is
// written to the first half of a row of f32.
template <typename In, typename Out>
__device__ void gradient(const In *row, Out *out, i64 vocabulary, float inverse_temperature, i64 target, float chosen,
                         float log_sum_exp, float entropy, float by_logp, float by_entropy) {
    bool idle = by_logp == 0.0f && by_entropy == 0.0f; // then nothing of the row is computed with
    for (i64 begin = 0; begin < vocabulary; begin += (i64)blockDim.x * STEP) {
        i64 first = begin + (i64)threadIdx.x * STEP;
        float entries[STEP];
        if (!idle && first < vocabulary)
            tempered(row, first, vocabulary, inverse_temperature, target, chosen, entries);
        __syncthreads();
        if (first >= vocabulary) continue;
        for (int k = 0; k < STEP; k++) {
            if (idle) {
                entries[k] = 0.0f;
                continue;
            }
            float log_p = entries[k] - log_sum_exp, p = __expf(log_p);
            float of_logp = by_logp * ((first + k == target ? 1.0f : 0.0f) - p);
            // Where p is 0, log p may be -inf: no product of the two is taken.
            float of_entropy = p == 0.0f || by_entropy == 0.0f ? 0.0f : by_entropy * p * (log_p + entropy);
            entries[k] = (of_logp - of_entropy) * inverse_temperature;
        }
        save(out, first, vocabulary, entries);
    }
}

// Logits in f32. `stride` is the rows' distance in entries. Writes logp, entropy, log_sum_exp and chosen, [n] each: the
// last two are for the gradient.
extern "C" __global__ void head_scores_f32(const float *logits, i64 stride, i64 vocabulary, float inverse_temperature,
                                           const i64 *targets, float *logp, float *entropy, float *log_sum_exp,
                                           float *chosen) {
    i64 row = blockIdx.x, target = targets[row];
    const float *own = logits + row * stride;
    scores(own, vocabulary, inverse_temperature, target, own[target] * inverse_temperature, logp + row, entropy + row,
           log_sum_exp + row, chosen + row);
}

// Logits in bf16, and what they are products of: hidden [n, width] and weight [V, width], both contiguous.
extern "C" __global__ void head_scores_bf16(const bf16 *logits, i64 stride, i64 vocabulary, float inverse_temperature,
                                            const i64 *targets, const bf16 *hidden, const bf16 *weight, int width,
                                            float *logp, float *entropy, float *log_sum_exp, float *chosen) {
    i64 row = blockIdx.x, target = targets[row];
    float exact = dot(hidden + row * width, weight + target * width, width) * inverse_temperature;
    scores(logits + row * stride, vocabulary, inverse_temperature, target, exact, logp + row, entropy + row,
           log_sum_exp + row, chosen + row);
}

// The gradient by the logits before the division by the temperature. `grad_entropy` may be null. `out` may be `logits`;
// for bf16 in the place of f32 its stride, in entries of its own, is then twice that of the logits.
extern "C" __global__ void head_gradient_f32(const float *logits, i64 stride, float *out, i64 out_stride,
                                             i64 vocabulary, float inverse_temperature, const i64 *targets,
                                             const float *chosen, const float *log_sum_exp, const float *entropy,
                                             const float *grad_logp, const float *grad_entropy) {
    i64 row = blockIdx.x;
    gradient(logits + row * stride, out + row * out_stride, vocabulary, inverse_temperature, targets[row], chosen[row],
             log_sum_exp[row], entropy[row], grad_logp[row], grad_entropy ? grad_entropy[row] : 0.0f);
}

extern "C" __global__ void head_gradient_f32_to_bf16(const float *logits, i64 stride, bf16 *out, i64 out_stride,
                                                     i64 vocabulary, float inverse_temperature, const i64 *targets,
                                                     const float *chosen, const float *log_sum_exp,
                                                     const float *entropy, const float *grad_logp,
                                                     const float *grad_entropy) {
    i64 row = blockIdx.x;
    gradient(logits + row * stride, out + row * out_stride, vocabulary, inverse_temperature, targets[row], chosen[row],
             log_sum_exp[row], entropy[row], grad_logp[row], grad_entropy ? grad_entropy[row] : 0.0f);
}

extern "C" __global__ void head_gradient_bf16(const bf16 *logits, i64 stride, bf16 *out, i64 out_stride,
                                              i64 vocabulary, float inverse_temperature, const i64 *targets,
                                              const float *chosen, const float *log_sum_exp, const float *entropy,
                                              const float *grad_logp, const float *grad_entropy) {
    i64 row = blockIdx.x;
    gradient(logits + row * stride, out + row * out_stride, vocabulary, inverse_temperature, targets[row], chosen[row],
             log_sum_exp[row], entropy[row], grad_logp[row], grad_entropy ? grad_entropy[row] : 0.0f);
}
