// The kernels' arithmetic on the CPU: reads one job after another from standard input and answers each on standard
// output. Put together by tests/it/fused_cuda.rs, which includes src/fused/kernels/loss.cu once for each variant, in a
// namespace of its own, and this file's second part behind it.
#ifndef JOB
#define JOB
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

struct Job {
    long long variant, count, width, has_ref, has_entropy, wants_grad_entropy;
    std::vector<double> plan, logp, logp_old, logp_ref, advantages, entropy, mask, row_weights, sequence_weight;
    std::vector<double> grad_logp, grad_entropy, sums;
};
#else
static std::vector<real> reals(const std::vector<double> &from) { return std::vector<real>(from.begin(), from.end()); }

static void run(Job &job) {
    std::vector<real> logp = reals(job.logp), logp_old = reals(job.logp_old), logp_ref = reals(job.logp_ref);
    std::vector<real> advantages = reals(job.advantages), entropy = reals(job.entropy);
    std::vector<unsigned char> mask(job.mask.begin(), job.mask.end());
    Tokens in = {logp.data(),
                 logp_old.data(),
                 job.has_ref ? logp_ref.data() : nullptr,
                 advantages.data(),
                 job.has_entropy ? entropy.data() : nullptr,
                 mask.data(),
                 job.row_weights.data(),
                 job.sequence_weight.data(),
                 job.count,
                 job.width};
    Plan plan;
    if (sizeof(Plan) != job.plan.size() * sizeof(double)) exit(2);
    double *numbers = (double *)&plan;
    for (size_t i = 0; i < job.plan.size(); i++) numbers[i] = job.plan[i];
    std::vector<real> grad_logp(job.count, NAN), grad_entropy(job.count, NAN);
    job.sums.assign(SUMS, 0.0);
    Found found = {grad_logp.data(), job.wants_grad_entropy ? grad_entropy.data() : nullptr, job.sums.data()};
#if OBJECTIVE == GSPO || OBJECTIVE == GMPO
    for (long long row = 0; row < job.count / job.width; row++) add_row(in, plan, row, 0, 1, job.sums.data(), found);
#else
    add_tokens(in, plan, 0, 1, job.sums.data(), found);
#endif
    job.grad_logp.assign(grad_logp.begin(), grad_logp.end());
    job.grad_entropy.assign(grad_entropy.begin(), grad_entropy.end());
}
#endif
