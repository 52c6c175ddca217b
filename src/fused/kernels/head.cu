// The rows of a chunk's logits, [n, V] in single precision: their scores, and then the loss's gradient by them, where
// they stand.
//
// Launch shape of every kernel: one block a row (grid n), 32 to 1024 threads in whole warps, no dynamic shared memory. A
// row is read from global memory in steps of 8 entries a thread, so V may be anything; rows that begin at 16 bytes are
// read and written 16 bytes at a time. n = 0 must not be launched.
//
// Between the two stands the loss, which makes grad_logp and grad_entropy of logp and entropy.

typedef long long i64;

constexpr int STEP = 8;
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ void store(float *at, float x) { *at = x; }
__device__ __forceinline__ void store(bf16 *at, float x) { *at = to_bf16(x); }

__device__ __forceinline__ bool aligned(const void *at) { return ((unsigned long long)at & 15) == 0; }

// 16 bytes, the widest access there is.
template <typename T> struct alignas(16) Wide {
    T entries[16 / sizeof(T)];
};

// STEP entries from `first` on, over the temperature; what lies past the row is -inf, which adds nothing.
__device__ __forceinline__ void load(const float *row, i64 first, i64 vocabulary, float inverse_temperature,
                                     float *entries) {
    if (first + STEP <= vocabulary && aligned(row + first)) {
        for (int part = 0; part < STEP / 4; part++) {
            Wide<float> wide = *(const Wide<float> *)(row + first + part * 4);
            for (int k = 0; k < 4; k++) entries[part * 4 + k] = wide.entries[k] * inverse_temperature;
        }
    } else {
        for (int k = 0; k < STEP; k++)
            entries[k] = first + k < vocabulary ? row[first + k] * inverse_temperature : -infinity();
    }
}

template <typename T> __device__ __forceinline__ void save(T *row, i64 first, i64 vocabulary, const float *entries) {
    if (first + STEP <= vocabulary && aligned(row + first)) {
        constexpr int PER = 16 / sizeof(T);
        for (int part = 0; part < STEP / PER; part++) {
            Wide<T> wide;
            for (int k = 0; k < PER; k++) store(wide.entries + k, entries[part * PER + k]);
            *(Wide<T> *)(row + first + part * PER) = wide;
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
    float by = r.largest - largest, factor = expf(by);
    // Nothing is left of them; of a very low m, `by` times the sum would be infinite.
    if (factor == 0.0f) return Running{largest, 0.0f, 0.0f};
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
        float shifted = entries[k] - largest, share = expf(shifted);
        r.sum += share, r.weighted += share * shifted;
    }
    return r;
}

// Over the block; every thread gets it.
__device__ Running over_block(Running r) {
    __shared__ Running of_warps[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int away = 16; away > 0; away >>= 1) {
        Running other;
        other.largest = __shfl_xor_sync(ALL, r.largest, away);
        other.sum = __shfl_xor_sync(ALL, r.sum, away);
        other.weighted = __shfl_xor_sync(ALL, r.weighted, away);
        r = joined(r, other);
    }
    if (lane == 0) of_warps[warp] = r;
    __syncthreads();
    r = of_warps[0];
    for (int other = 1; other < warps; other++) r = joined(r, of_warps[other]);
    return r;
}

// In place or not: a thread's entries are read before any thread of the block writes over them, also where bf16 is
// written to the first half of a row of f32.
template <typename Out>
__device__ void gradient(const float *row, Out *out, i64 vocabulary, float inverse_temperature, i64 target,
                         float largest, float log_sum, float entropy, float by_logp, float by_entropy) {
    bool idle = by_logp == 0.0f && by_entropy == 0.0f; // then nothing of the row is computed with
    for (i64 begin = 0; begin < vocabulary; begin += (i64)blockDim.x * STEP) {
        i64 first = begin + (i64)threadIdx.x * STEP;
        float entries[STEP];
        if (!idle && first < vocabulary) load(row, first, vocabulary, inverse_temperature, entries);
        __syncthreads();
        if (first >= vocabulary) continue;
        for (int k = 0; k < STEP; k++) {
            if (idle) {
                entries[k] = 0.0f;
                continue;
            }
            float log_p = (entries[k] - largest) - log_sum, p = expf(log_p);
            float of_logp = by_logp * ((first + k == target ? 1.0f : 0.0f) - p);
            // Where p is 0, log p may be -inf: no product of the two is taken.
            float of_entropy = p == 0.0f || by_entropy == 0.0f ? 0.0f : by_entropy * p * (log_p + entropy);
            entries[k] = (of_logp - of_entropy) * inverse_temperature;
        }
        save(out, first, vocabulary, entries);
    }
}

// `stride` is the rows' distance in entries. Writes logp, entropy, and of exp(z) the largest z and the logarithm of the
// sum over that, [n] each. The last two are for the gradient; their sum would have lost digits where z is large. A target
// outside the vocabulary has the log-probability NaN.
extern "C" __global__ void head_scores(const float *logits, i64 stride, i64 vocabulary, float inverse_temperature,
                                       const i64 *targets, float *logp, float *entropy, float *largest,
                                       float *log_sum) {
    i64 place = blockIdx.x, target = targets[place];
    const float *row = logits + place * stride;
    Running r = {-infinity(), 0.0f, 0.0f};
    for (i64 first = (i64)threadIdx.x * STEP; first < vocabulary; first += (i64)blockDim.x * STEP) {
        float entries[STEP];
        load(row, first, vocabulary, inverse_temperature, entries);
        r = with(r, entries);
    }
    r = over_block(r);
    if (threadIdx.x == 0) {
        bool is_inside = target >= 0 && target < vocabulary;
        float chosen = is_inside ? row[target] * inverse_temperature : infinity() - infinity();
        float of_row = logf(r.sum);
        logp[place] = (chosen - r.largest) - of_row;
        entropy[place] = of_row - r.weighted / r.sum;
        largest[place] = r.largest;
        log_sum[place] = of_row;
    }
}

// The gradient by the logits before the division by the temperature. `grad_entropy` may be null. `out` may be `logits`.
extern "C" __global__ void head_gradient(const float *logits, i64 stride, float *out, i64 out_stride, i64 vocabulary,
                                         float inverse_temperature, const i64 *targets, const float *largest,
                                         const float *log_sum, const float *entropy, const float *grad_logp,
                                         const float *grad_entropy) {
    i64 row = blockIdx.x;
    gradient(logits + row * stride, out + row * out_stride, vocabulary, inverse_temperature, targets[row], largest[row],
             log_sum[row], entropy[row], grad_logp[row], grad_entropy ? grad_entropy[row] : 0.0f);
}

// The same in bf16. In the place of the logits, its stride in entries of its own is twice theirs.
extern "C" __global__ void head_gradient_bf16(const float *logits, i64 stride, bf16 *out, i64 out_stride,
                                              i64 vocabulary, float inverse_temperature, const i64 *targets,
                                              const float *largest, const float *log_sum, const float *entropy,
                                              const float *grad_logp, const float *grad_entropy) {
    i64 row = blockIdx.x;
    gradient(logits + row * stride, out + row * out_stride, vocabulary, inverse_temperature, targets[row], largest[row],
             log_sum[row], entropy[row], grad_logp[row], grad_entropy ? grad_entropy[row] : 0.0f);
}
