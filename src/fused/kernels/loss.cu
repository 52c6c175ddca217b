// The loss of tokens from their log-probabilities in one pass, as src/fused/sweep.rs and src/fused/rows.rs have it.
//
// Compiled once for each variant, with these defined:
//   REAL       float or double, what the tensors are of and what is computed in
//   OBJECTIVE  one of the names below
//   KL         one of the names below
//
// Everything but the kernel at the end is plain C++ too, so that a test can run it without a GPU: there one thread does
// what a block does here, and `all` has nothing to add up.

#define VANILLA 0
#define GPG 1
#define CISPO 2
#define SAPO 3
#define GSPO 4
#define GMPO 5

#define KL_NONE 0
#define KL_K1 1
#define KL_ABS 2
#define KL_K2 3
#define KL_K3 4

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#else
#include <cmath>
#define DEVICE static inline
#endif

typedef REAL real;

// The options, in the order of `Plan` in src/fused/cuda/loss.rs. An absent limit is an infinite one.
struct Plan {
    double limit, low, high, c;                     // the objective's own ratio: limit of its logarithm, bounds, dual clip
    double told_limit, told_low, told_high, told_c; // of the ratio that the figures are told of
    double tau_pos, tau_neg;                        // SAPO
    double log_ratio_max, by_sequence, by_mean;     // GSPO: whose gradient, and whether the sequence's sum is divided
    double kl_input_limit, kl_output_limit, kl_weight_limit, kl_coef;
    double kl_through, kl_weighed; // 1 for the gradient of k2, 1 for an estimate times the ratio
    double entropy_coeff, per_step, infinity;
};

// Tokens row by row; of a flat list every token is a row.
struct Tokens {
    const real *logp, *logp_old, *logp_ref, *advantages, *entropy; // logp_ref and entropy may be null
    const unsigned char *mask;
    const double *row_weights;     // what a token of the row weighs
    const double *sequence_weight; // what a sequence weighs, for GMPO
    long long count, width;
};

struct Found {
    real *grad_logp, *grad_entropy; // grad_entropy may be null
    double *sums;                   // SUMS of each block
};

// Sums over the tokens that count, in the order of `Sums` in src/fused/sweep.rs.
#define POLICY_SUM 0
#define KL_SUM 1
#define ENTROPY_SUM 2
#define CLIPPED 3
#define LOWERED 4
#define LOG_RATIO 5
#define RATIO 6
#define PLAIN_KL 7
#define PLAIN_ENTROPY 8
#define TOKENS 9
#define SUMS 10

struct Term {
    real loss, slope;
};

struct Ratio {
    real log, ratio, slope;
};

DEVICE float power(float x) { return expf(x); }
DEVICE double power(double x) { return exp(x); }

DEVICE real clamp(real x, real low, real high) {
    real from_below = x < low ? low : x;
    return from_below > high ? high : from_below;
}

DEVICE bool is_within(real x, real limit) { return x >= -limit && x <= limit; }

DEVICE Ratio ratio_of(real difference, double limit) {
    Ratio of;
    of.log = clamp(difference, -(real)limit, (real)limit);
    of.ratio = power(of.log);
    of.slope = is_within(difference, (real)limit) ? of.ratio : (real)0;
    return of;
}

// -min(ratio A, clip(ratio) A), at most -c A where A < 0. On a tie the gradient is that of the unclipped one.
DEVICE Term clip(real ratio, real slope, real advantage, real low, real high, real c) {
    real free = ratio * advantage, bound = clamp(ratio, low, high) * advantage;
    bool is_bound = free > bound;
    real loss = -(is_bound ? bound : free), cap = -c * advantage;
    bool is_capped = advantage < 0 && loss > cap;
    Term term = {is_capped ? cap : loss, is_bound || is_capped ? (real)0 : -(slope * advantage)};
    return term;
}

// -sigmoid(tau (ratio - 1)) (4 / tau) A, in the form whose exponential cannot overflow.
DEVICE Term sapo(real ratio, real slope, real advantage, const Plan &plan) {
    real tau = (real)(advantage > 0 ? plan.tau_pos : plan.tau_neg);
    real x = tau * (ratio - 1), small = power(x < 0 ? x : -x), over = 1 / (1 + small);
    real gate = (x < 0 ? small : (real)1) * over, closed = (x < 0 ? (real)1 : small) * over;
    real by_ratio = ratio < (real)plan.infinity ? gate * closed * slope : (real)0;
    Term term = {-(gate * (4 / tau) * advantage), -(by_ratio * 4 * advantage)};
    return term;
}

// The policy's term of a token by itself.
DEVICE Term policy_of(real logp, real difference, real advantage, const Plan &plan) {
#if OBJECTIVE == GPG
    Term term = {-(advantage * logp), -advantage};
#else
    Ratio own = ratio_of(difference, plan.limit);
#if OBJECTIVE == CISPO
    real slope = -(clamp(own.ratio, (real)plan.low, (real)plan.high) * advantage);
    Term term = {slope * logp, slope};
#elif OBJECTIVE == SAPO
    Term term = sapo(own.ratio, own.slope, advantage, plan);
#else
    Term term = clip(own.ratio, own.slope, advantage, (real)plan.low, (real)plan.high, (real)plan.c);
#endif
#endif
    return term;
}

// The KL's term of a token.
DEVICE Term kl_of(real from_ref, real difference, const Plan &plan) {
    real input_limit = (real)plan.kl_input_limit, output_limit = (real)plan.kl_output_limit;
    real d = clamp(from_ref, -input_limit, input_limit);
#if KL == KL_K3
    real exponential = power(-d), estimate = exponential + d - 1, slope = 1 - exponential;
#elif KL == KL_K2
    real estimate = d * d / 2, slope = d;
#elif KL == KL_ABS
    real estimate = d < 0 ? -d : d, slope = d > 0 ? (real)1 : d < 0 ? (real)-1 : (real)0;
#else
    real estimate = d, slope = 1;
#endif
    Term term;
    term.loss = clamp(estimate, -output_limit, output_limit);
    bool passes = is_within(from_ref, input_limit) && is_within(estimate, output_limit);
    term.slope = plan.kl_through != 0 ? from_ref : passes ? slope : (real)0;
    if (plan.kl_weighed == 0) return term;
    Ratio weight = ratio_of(difference, plan.kl_weight_limit);
    term.slope = term.slope * weight.ratio + term.loss * weight.slope;
    term.loss = term.loss * weight.ratio;
    return term;
}

DEVICE bool gain_is_clipped(real ratio, real advantage, const Plan &plan) {
    return (advantage > 0 && ratio > (real)plan.told_high) || (advantage < 0 && ratio < (real)plan.told_low);
}

DEVICE bool is_lowered(real ratio, real advantage, const Plan &plan) {
    real free = ratio * advantage, bound = clamp(ratio, (real)plan.told_low, (real)plan.told_high) * advantage;
    real loss = -(free > bound ? bound : free);
    return advantage < 0 && loss > -(real)plan.told_c * advantage;
}

// What a masked token leaves behind; nothing that stood there is read.
DEVICE void leave_out(long long t, const Found &found) {
    found.grad_logp[t] = 0;
    if (found.grad_entropy) found.grad_entropy[t] = 0;
}

// What a kept token adds beside the policy's term, whose part of the gradient is given.
DEVICE void add_others(const Tokens &in, const Plan &plan, long long t, real weight, real gradient,
                       double *sums, const Found &found) {
    real logp = in.logp[t], difference = logp - in.logp_old[t], advantage = in.advantages[t];
    real scale = weight * (real)plan.per_step;
#if KL != KL_NONE
    Term kl = kl_of(logp - in.logp_ref[t], difference, plan);
    gradient += scale * (real)plan.kl_coef * kl.slope;
    sums[KL_SUM] += (double)(weight * kl.loss);
    sums[PLAIN_KL] += (double)kl.loss;
#endif
    found.grad_logp[t] = gradient;
    if (found.grad_entropy) found.grad_entropy[t] = -(scale * (real)plan.entropy_coeff);
    if (in.entropy) {
        sums[ENTROPY_SUM] += (double)(weight * in.entropy[t]);
        sums[PLAIN_ENTROPY] += (double)in.entropy[t];
    }
    Ratio told = ratio_of(difference, plan.told_limit);
    sums[CLIPPED] += gain_is_clipped(told.ratio, advantage, plan);
    sums[LOWERED] += is_lowered(told.ratio, advantage, plan);
    sums[LOG_RATIO] += (double)told.log;
    sums[RATIO] += (double)told.ratio;
    sums[TOKENS] += 1;
}

// Every `stride`th token from `first` on.
DEVICE void add_tokens(const Tokens &in, const Plan &plan, long long first, long long stride, double *sums,
                       const Found &found) {
    for (long long t = first; t < in.count; t += stride) {
        if (!in.mask[t]) {
            leave_out(t, found);
            continue;
        }
        real weight = (real)in.row_weights[t / in.width];
        Term policy = policy_of(in.logp[t], in.logp[t] - in.logp_old[t], in.advantages[t], plan);
        sums[POLICY_SUM] += (double)(weight * policy.loss);
        add_others(in, plan, t, weight, weight * (real)plan.per_step * policy.slope, sums, found);
    }
}

// The sum of every thread's number, known to every thread of the block.
#ifdef __CUDACC__
DEVICE double all(double mine) {
    __shared__ double of_warps[32];
    for (int half = 16; half > 0; half /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, half);
    __syncthreads(); // whoever still reads the last sum
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
    __syncthreads();
    double sum = 0;
    for (unsigned warp = 0; warp < (blockDim.x + 31) / 32; warp++) sum += of_warps[warp];
    return sum;
}
#else
DEVICE double all(double mine) { return mine; }
#endif

// One row, whose tokens the threads of a block share.
DEVICE void add_row(const Tokens &in, const Plan &plan, long long row, int thread, int threads, double *sums,
                    const Found &found) {
    long long begin = row * in.width, end = begin + in.width;
    real weight = (real)in.row_weights[row];
    double count = 0, sum = 0;
    for (long long t = begin + thread; t < end; t += threads) count += in.mask[t] != 0;
    count = all(count);
    double at_least_1 = count > 1 ? count : 1;
#if OBJECTIVE == GSPO
    for (long long t = begin + thread; t < end; t += threads)
        if (in.mask[t]) sum += (double)(in.logp[t] - in.logp_old[t]);
    sum = all(sum);
    double over = plan.by_mean != 0 ? at_least_1 : 1;
    real log_ratio = (real)(sum / over), max = (real)plan.log_ratio_max;
    bool passes = log_ratio <= max;
    real ratio = power(passes ? log_ratio : max), slope = passes ? ratio : (real)0;
    double of_row = 0;
    if (plan.by_sequence != 0) {
        for (long long t = begin + thread; t < end; t += threads) {
            if (!in.mask[t]) continue;
            Term term = clip(ratio, slope, in.advantages[t], (real)plan.low, (real)plan.high, (real)plan.c);
            of_row += (double)weight * (double)term.slope * plan.per_step;
        }
        of_row = all(of_row);
    }
    for (long long t = begin + thread; t < end; t += threads) {
        if (!in.mask[t]) {
            leave_out(t, found);
            continue;
        }
        Term term = clip(ratio, slope, in.advantages[t], (real)plan.low, (real)plan.high, (real)plan.c);
        sums[POLICY_SUM] += (double)weight * (double)term.loss;
        double own = (double)weight * (double)term.slope * plan.per_step;
        real gradient = (real)(plan.by_sequence != 0 ? of_row / over : own);
        add_others(in, plan, t, weight, gradient, sums, found);
    }
#else
    for (long long t = begin + thread; t < end; t += threads)
        if (in.mask[t]) sum += (double)in.advantages[t];
    real advantage = (real)(all(sum) / at_least_1);
    real high = (real)plan.high, low = (real)plan.low, bound = advantage > 0 ? high : low;
    double bounded = 0;
    for (long long t = begin + thread; t < end; t += threads) {
        if (!in.mask[t]) continue;
        real d = in.logp[t] - in.logp_old[t];
        bool is_bound = (advantage > 0 && d > high) || (advantage < 0 && d < low);
        bounded += (double)(is_bound ? bound : d);
    }
    bounded = all(bounded);
    // Without an advantage no log-ratio counts, not even one that overflows.
    bool is_flat = advantage == 0;
    real loss = -(advantage * power((real)(is_flat ? 0.0 : bounded / at_least_1)));
    double of_sequence = *in.sequence_weight;
    if (thread == 0 && count > 0) sums[POLICY_SUM] += of_sequence * (double)loss;
    real slope = (real)(of_sequence * (double)loss / at_least_1 * plan.per_step);
    for (long long t = begin + thread; t < end; t += threads) {
        if (!in.mask[t]) {
            leave_out(t, found);
            continue;
        }
        real d = in.logp[t] - in.logp_old[t];
        bool is_bound = (advantage > 0 && d > high) || (advantage < 0 && d < low);
        add_others(in, plan, t, weight, is_flat || is_bound ? (real)0 : slope, sums, found);
    }
#endif
}

#ifdef __CUDACC__
extern "C" __global__ void loss(Tokens in, Plan plan, Found found) {
    double sums[SUMS] = {0};
#if OBJECTIVE == GSPO || OBJECTIVE == GMPO
    long long rows = in.width ? in.count / in.width : 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x)
        add_row(in, plan, row, threadIdx.x, blockDim.x, sums, found);
#else
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    add_tokens(in, plan, first, (long long)gridDim.x * blockDim.x, sums, found);
#endif
    // Block by block, so that the order of the additions is the same in every run.
    for (int i = 0; i < SUMS; i++) {
        double of_block = all(sums[i]);
        if (threadIdx.x == 0) found.sums[(long long)blockIdx.x * SUMS + i] = of_block;
    }
}
#endif
