//! What the differences of docs/matrix.md come of, in words.

/// A package's page, or any; how the formula's id begins; a clause or a case; and what the package does.
type Note = (&'static str, &'static str, &'static str, &'static str);

const NOTHING: &str = "The mean of nothing is 0 / 0. With the counts of the whole batch (`batch_num_tokens`, \
                       `global_batch_size`) it is 0.";

const NOTES: &[Note] = &[
    (
        "",
        "advantage.",
        "advantage.group-norm.constant",
        "Whether rewards are equal is not asked: what rounding leaves of reward less mean stays, over what it leaves of the \
         deviation. No option. Rewards with an exact mean, 0 and 1 among them, get 0.",
    ),
    ("", "mask.variance", "mask.variance.equal", EQUAL),
    ("", "mask.whiten", "mask.whiten.equal", EQUAL),
    (
        "",
        "logprob.",
        "logprob.ruled-out",
        "The entropy multiplies a probability of 0 by a logit of minus infinity. No option. It takes a filtered vocabulary to \
         be seen.",
    ),
    ("", "aggregate.loss", "aggregate.empty", NOTHING),
    ("", "value.clipped", "nothing-kept", NOTHING),
    ("", "objective.clip", "nothing-kept", "The mean of nothing is 0 / 0."),
    ("", "metrics.policy", "nothing-kept", "The mean of nothing is 0 / 0."),
    ("verl-0.9.1", "kl.in_reward", "kl.in-reward.current-kl", AS_ZERO),
    (
        "verl-0.9.1",
        "value.clipped",
        "value.clipped.tie",
        "`torch.max` halves the gradient between equal errors, and so does its clamp at an edge. No option.",
    ),
    ("verl-0.9.1", "rollout.", "nothing-kept", "It refuses a batch of which nothing is kept."),
    (
        "verl-0.9.1",
        "rollout.weights",
        "everything-masked-normalised",
        "Where every weight is 0 its statistics divide by 0.",
    ),
    ("trl-1.16", "objective.gmpo", "objective.gmpo.clip", AS_ONE),
    ("openrlhf-0.11", "mask.mean", "mask.mean.empty", NAN),
    ("", "advantage.reinforce_plus_plus_baseline", "family-empty-rows", ABSENT),
    (
        "verl-0.9.1",
        "",
        "with-dp-size-4-0",
        "With `dp_size` it wants to be told the batch's tokens. No option.",
    ),
    ("verl-0.9.1", "kl.in_reward", "family-empty-rows", AS_ZERO),
    ("trl-1.16", "objective.gmpo", "family-empty-rows", AS_ONE),
    ("", "objective.actor_loss", "family-log-ratio-1024", OVERFLOW),
    ("", "objective.gspo", "family-log-ratio-1024", OVERFLOW),
    ("trl-1.16", "objective.clip", "family-log-ratio-1024", BESIDE),
    ("trl-1.16", "kl.estimate", "family-log-ratio-1024", BESIDE),
    ("openrlhf-0.11", "mask.mean", "with-empty-nan", NAN),
    ("openrlhf-0.11", "objective.clip", "far-clip-ratio-c-null", FIRST),
    ("openrlhf-0.11", "objective.clip", "far-log-ratio-clamp-20-0", FIRST),
    ("openrlhf-0.11", "objective.clip", "far", FIRST),
    ("openrlhf-0.11", "objective.clip", "far-verl", FIRST),
];

const EQUAL: &str = "Whether values are equal is not asked: what rounding leaves of value less mean stays. No option. Values \
                     with an exact mean have variance 0.";

const AS_ZERO: &str = "A response without a kept token counts as 0, as the page says.";

const AS_ONE: &str =
    "A sequence without a kept token counts, with a ratio of 1 (`r[objective.gmpo.empty]`). No option.";

const NAN: &str = "The value is NaN by its option; the gradient is so too.";

const ABSENT: &str = "A response without a kept token counts in its group \
                      (`r[advantage.reinforce-plus-plus-baseline.absent]`). No option.";

const OVERFLOW: &str = "The log-ratio is not clamped: the ratio overflows, and 0 times infinity reaches the gradient where the \
                        loss is clipped.";

const BESIDE: &str = "Masking multiplies, so that beside a token whose loss is infinite every other has NaN.";

const FIRST: &str =
    "`ppo_kl` is taken before the log-ratio is clamped, as the page says; `metrics.policy` has it so.";

/// What there is to say of a case on which a package differs.
pub(crate) fn note(page: &str, formula: &str, case: &str, clauses: &[String]) -> Option<&'static str> {
    let about = |key: &str| key == case || clauses.iter().any(|clause| clause == key);
    let found = NOTES
        .iter()
        .find(|note| (note.0.is_empty() || note.0 == page) && formula.starts_with(note.1) && about(note.2));
    found.map(|note| note.3)
}
