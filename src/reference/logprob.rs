//! Log-probabilities of tokens, and the ratio of two policies.

use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2, ArrayRef3, Axis, Zip};

use super::Real;
use super::mask::mean_of;
use crate::axes::Axes;
use crate::options::{EmptyMean, Ratio, SequenceLevel, SequenceRatio, Softmax};
use crate::{Error, Result};

/// What [`token`] gives; both `[B, T]`, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob<R> {
    /// log softmax(logits / temperature) at the token.
    pub logp: Array2<R>,
    /// The entropy of softmax(logits / temperature).
    pub entropy: Array2<R>,
}

/// The log-probability of each token and the entropy of the distribution it was drawn from.
///
/// ```text
/// z = logits / temperature        logp = z[token] - log sum_v exp(z_v)        entropy = log sum_v exp(z_v) - sum_v p_v z_v
/// ```
///
/// Clauses `logprob.token`, `logprob.entropy`, `logprob.temperature`. verl `logprobs_from_logits`, TRL
/// `selective_log_softmax`.
///
/// * `logits`: `[B, T, V]`; gradient flows; -inf rules a token out, but not all of them
/// * `tokens`: `[B, T]`, each in 0..V
///
/// # Errors
/// `rank` or `shape` if the shapes do not fit, `index` for a token outside the vocabulary, `option` for a temperature
/// that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Softmax, reference::logprob};
/// use ndarray::array;
/// let logits = array![[[0.0, 0.0, 0.0, 0.0]]];
/// let token = logprob::token(&logits, &array![[2]], &Softmax::plain())?;
/// assert_eq!(token.logp[[0, 0]], -f64::ln(4.0));
/// assert_eq!(token.entropy[[0, 0]], f64::ln(4.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn token<R: Real>(
    logits: &ArrayRef3<R>,
    tokens: &ArrayRef2<i64>,
    options: &Softmax,
) -> Result<TokenLogprob<R>> {
    options.check()?;
    let axes = Axes::default().bind("logits", &["B", "T", "V"], logits.shape())?;
    let vocabulary = axes.bind("tokens", &["B", "T"], tokens.shape())?.length("V");
    if let Some((index, &got)) = tokens.iter().enumerate().find(|&(_, &t)| t < 0 || t as usize >= vocabulary)
    {
        return Err(Error::Index { argument: "tokens".to_owned(), index, got, limit: vocabulary });
    }
    let temperature = R::constant(options.temperature);
    let zero = Array2::from_elem(tokens.raw_dim(), R::constant(0.0));
    let mut both = TokenLogprob { logp: zero.clone(), entropy: zero };
    for ((row, column), &token) in tokens.indexed_iter() {
        let z = logits.slice(ndarray::s![row, column, ..]).mapv(|logit| logit / temperature);
        let log_sum_exp = log_sum_exp(&z);
        both.logp[[row, column]] = z[token as usize] - log_sum_exp;
        both.entropy[[row, column]] = entropy_of(&z, log_sum_exp);
    }
    Ok(both)
}

/// The entropy of the distribution that a token is drawn from.
///
/// ```text
/// z = logits / temperature        entropy = log sum_v exp(z_v) - sum_v p_v z_v
/// ```
///
/// Clauses `logprob.entropy`, `logprob.entropy.gradient`, `logprob.temperature`, `logprob.ruled-out`. The second output
/// of [`token`], for its gradient. CS336 `compute_entropy`.
///
/// * `logits`: `[B, T, V]`; gradient flows; -inf rules a token out, but not all of them
///
/// # Errors
/// `option` for a temperature that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Softmax, reference::logprob};
/// use ndarray::array;
/// let logits = array![[[1.0, 1.0, f64::NEG_INFINITY], [5.0, f64::NEG_INFINITY, f64::NEG_INFINITY]]];
/// let entropy = logprob::entropy(&logits, &Softmax::plain())?;
/// assert!((entropy[[0, 0]] - f64::ln(2.0)).abs() < 1e-15); // one of two, evenly
/// assert_eq!(entropy[[0, 1]], 0.0); // no choice at all
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn entropy<R: Real>(logits: &ArrayRef3<R>, options: &Softmax) -> Result<Array2<R>> {
    options.check()?;
    Axes::default().bind("logits", &["B", "T", "V"], logits.shape())?;
    let temperature = R::constant(options.temperature);
    Ok(logits.map_axis(Axis(2), |logits| {
        let z = logits.mapv(|logit| logit / temperature);
        entropy_of(&z, log_sum_exp(&z))
    }))
}

/// log sum_v exp(z_v), shifted by the largest z so that nothing overflows; its derivative by z_v is p_v = exp(z_v - it).
pub(super) fn log_sum_exp<R: Real>(z: &ArrayRef1<R>) -> R {
    let largest = z.iter().copied().fold(R::constant(f64::NEG_INFINITY), R::max).detach();
    let value = (largest + R::sum(z.iter().map(|&z| (z - largest).exp())).ln()).detach();
    value.with_gradient_of(R::sum(possible(z).map(|z| (z.detach() - value).exp() * z)))
}

/// log sum_v exp(z_v) - sum_v p_v z_v
fn entropy_of<R: Real>(z: &ArrayRef1<R>, log_sum_exp: R) -> R {
    log_sum_exp - R::sum(possible(z).map(|z| (z - log_sum_exp).exp() * z))
}

/// The tokens that are not ruled out (z = -inf); the others have probability 0 and add nothing.
fn possible<R: Real>(z: &ArrayRef1<R>) -> impl Iterator<Item = R> + '_ {
    z.iter().copied().filter(|z| z.value() > f64::NEG_INFINITY)
}

/// The importance ratio of the policy to the one that the tokens were drawn from.
///
/// ```text
/// ratio_t = exp(clamp(logp_t - logp_old_t))
/// ```
///
/// Clauses `logprob.ratio`, `logprob.ratio.clamp`. CS336 Eq. 27; the clamp is verl's since 0.4.1.
///
/// * `logp`: `[B, T]`; gradient flows, and dies where the clamp bites
/// * `logp_old`: `[B, T]`; constants, no gradient flows
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Ratio, reference::logprob};
/// use ndarray::array;
/// let ratio = logprob::ratio(&array![[-1.0, -50.0]], &array![[-1.0, -90.0]], &Ratio::verl())?;
/// assert_eq!(ratio, array![[1.0, f64::exp(20.0)]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn ratio<R: Real>(logp: &ArrayRef2<R>, logp_old: &ArrayRef2<R>, options: &Ratio) -> Result<Array2<R>> {
    options.check()?;
    Axes::default().bind("logp", &["B", "T"], logp.shape())?.bind(
        "logp_old",
        &["B", "T"],
        logp_old.shape(),
    )?;
    Ok(Zip::from(logp).and(logp_old).map_collect(|&new, &old| log_ratio(new, old, options).exp()))
}

/// logp - logp_old within the clamp; the old policy is a constant.
pub(super) fn log_ratio<R: Real>(logp: R, logp_old: R, options: &Ratio) -> R {
    clamp_both_ways(logp - logp_old.detach(), options.log_ratio_clamp)
}

/// How much likelier a sequence is under the policy than under the one that drew it.
///
/// ```text
/// ratio_i = exp(clamp(mean_t (logp_it - logp_old_it)))        level "mean", the geometric mean of the tokens' ratios
/// ratio_i = exp(clamp(sum_t  (logp_it - logp_old_it)))        level "sum"
/// ```
///
/// Clauses `logprob.sequence-ratio` and below, `mask.select`. GSPO (arXiv 2507.18071) Eq. 7; TRL's RLOO.
///
/// * `logp`: `[B, T]`, nats; gradient flows, and dies where the clamp bites
/// * `logp_old`: `[B, T]`; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A sequence without a kept token has the ratio 1, with gradient 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::SequenceRatio, reference::logprob};
/// use ndarray::array;
/// let (new, old) = (array![[-1.0, -2.0, f64::NAN]], array![[-2.0, -2.0, 0.0]]);
/// let kept = array![[true, true, false]];
/// assert_eq!(logprob::sequence_ratio(&new, &old, &kept, &SequenceRatio::gspo())?, array![f64::exp(0.5)]);
/// assert_eq!(logprob::sequence_ratio(&new, &old, &kept, &SequenceRatio::whole())?, array![f64::exp(1.0)]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn sequence_ratio<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &SequenceRatio,
) -> Result<Array1<R>> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let rows = Zip::from(logp.rows()).and(logp_old.rows()).and(response_mask.rows());
    Ok(rows.map_collect(|new, old, keep| {
        let log_ratio = sequence_log_ratio(&new, &old, &keep, options.level);
        clamp_both_ways(log_ratio, options.log_ratio_clamp).exp()
    }))
}

/// The mean or the sum of the kept tokens' log-ratios, 0 where none is kept; the old policy is a constant.
pub(super) fn sequence_log_ratio<R: Real>(
    logp: &ArrayRef1<R>,
    logp_old: &ArrayRef1<R>,
    response_mask: &ArrayRef1<bool>,
    level: SequenceLevel,
) -> R {
    let kept = response_mask.iter().enumerate().filter(|&(_, &keep)| keep);
    let log_ratios = kept.map(|(t, _)| logp[t] - logp_old[t].detach());
    match level {
        SequenceLevel::Mean => mean_of(log_ratios, EmptyMean::Zero),
        SequenceLevel::Sum => R::sum(log_ratios),
    }
}

/// Within [-limit, limit], if there is a limit.
pub(super) fn clamp_both_ways<R: Real>(x: R, limit: Option<f64>) -> R {
    limit.map_or(x, |limit| x.clamp(R::constant(-limit), R::constant(limit)))
}
