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
    (
        "verl-0.9.1",
        "kl.in_reward",
        "kl.in-reward.current-kl",
        "A response without a kept token counts as 0, as the page says.",
    ),
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
    (
        "trl-1.16",
        "objective.gmpo",
        "objective.gmpo.clip",
        "A sequence without a kept token counts, with a ratio of 1 (`r[objective.gmpo.empty]`). No option.",
    ),
    (
        "openrlhf-0.11",
        "mask.mean",
        "mask.mean.empty",
        "The value is NaN by its option; the gradient is so too.",
    ),
    ("openrlhf-0.11", "objective.clip", "far", FIRST),
    ("openrlhf-0.11", "objective.clip", "far-verl", FIRST),
];

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
