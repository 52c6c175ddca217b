// Gradient norm, gradient clip and AdamW of all parameters of a model in one launch each.
//
// Compiled with REAL, float or double: what parameters and means are of, and what is computed in.
//
// A table in the device's memory says where the tensors are; it is cut into pieces of at most `size` entries, and each
// piece is a block's (grid: as many as there are pieces; threads in whole warps, 1024 at most; no dynamic shared memory).

typedef REAL real;
typedef long long i64;

// One parameter: a row of the table, of 64-bit words.
struct Parameter {
    real *param;
    void *grad; // real, or bf16 where is_coarse
    real *m, *v;
    bf16 *coarse; // the parameter in bf16, to be kept up; may be null
    i64 length, is_coarse;
};

// `size` entries of a parameter, or what is left of it.
struct Piece {
    i64 parameter, first;
};

// The options of AdamW and the step, in the order of `Plan` in src/fused/optim.rs.
struct Plan {
    real shrunk, lr, beta1, beta2, new1, new2, correction1, correction2, eps;
};

__device__ __forceinline__ i64 end_of(const Piece &piece, i64 size, const Parameter &own) {
    i64 end = piece.first + size;
    return end < own.length ? end : own.length;
}

__device__ __forceinline__ real grad_of(const Parameter &own, i64 at) {
    return own.is_coarse ? (real)to_float(((const bf16 *)own.grad)[at]) : ((const real *)own.grad)[at];
}

__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

// The sum of every thread's number, in the same order in every run; the first thread gets it.
__device__ double over_block(double mine) {
    __shared__ double of_warps[32];
    for (int away = 16; away > 0; away >>= 1) mine += __shfl_xor_sync(0xffffffffu, mine, away);
    if ((threadIdx.x & 31) == 0) of_warps[threadIdx.x >> 5] = mine;
    __syncthreads();
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x >> 5; warp++) sum += of_warps[warp];
    return sum;
}

// The sum of the squared gradients of each piece.
extern "C" __global__ void clip_squares(const Parameter *table, const Piece *pieces, i64 size, double *of_pieces) {
    Piece piece = pieces[blockIdx.x];
    Parameter own = table[piece.parameter];
    i64 end = end_of(piece, size, own);
    double sum = 0;
    for (i64 at = piece.first + threadIdx.x; at < end; at += blockDim.x) {
        double grad = (double)grad_of(own, at);
        sum += grad * grad;
    }
    sum = over_block(sum);
    if (threadIdx.x == 0) of_pieces[blockIdx.x] = sum;
}

// The root of the sum over all pieces, by one block.
extern "C" __global__ void clip_norm(const double *of_pieces, i64 count, double *norm) {
    double sum = 0;
    for (i64 at = threadIdx.x; at < count; at += blockDim.x) sum += of_pieces[at];
    sum = over_block(sum);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}

// Gradients whose norm is above `max_norm` times max_norm / (norm + eps), where they stand. NaN leaves them alone.
extern "C" __global__ void clip_scale(const Parameter *table, const Piece *pieces, i64 size, const double *norm,
                                 double max_norm, double eps) {
    double factor = max_norm / (*norm + eps);
    if (!(factor < 1)) return;
    Piece piece = pieces[blockIdx.x];
    Parameter own = table[piece.parameter];
    i64 end = end_of(piece, size, own);
    for (i64 at = piece.first + threadIdx.x; at < end; at += blockDim.x) {
        real scaled = grad_of(own, at) * (real)factor;
        if (own.is_coarse)
            ((bf16 *)own.grad)[at] = to_bf16((float)scaled);
        else
            ((real *)own.grad)[at] = scaled;
    }
}

// One step.
extern "C" __global__ void adamw(const Parameter *table, const Piece *pieces, i64 size, Plan plan) {
    Piece piece = pieces[blockIdx.x];
    Parameter own = table[piece.parameter];
    i64 end = end_of(piece, size, own);
    for (i64 at = piece.first + threadIdx.x; at < end; at += blockDim.x) {
        real grad = grad_of(own, at);
        real m = own.m[at] * plan.beta1 + grad * plan.new1;
        real v = own.v[at] * plan.beta2 + grad * grad * plan.new2;
        real over = root(v / plan.correction2) + plan.eps;
        real param = own.param[at] * plan.shrunk - m / plan.correction1 / over * plan.lr;
        own.m[at] = m, own.v[at] = v, own.param[at] = param;
        if (own.coarse) own.coarse[at] = to_bf16((float)param);
    }
}
