//! Log-probabilities of tokens, and the ratio of two policies.

use tch::{Device, Kind, Tensor};

use super::{at_least_f32, of_kind, select};
use crate::axes::Axes;
use crate::options::{Ratio, SequenceLevel, SequenceRatio, Softmax};
use crate::{Error, Result};

/// What [`token`] gives; both `[B, T]`, in nats.
#[derive(Debug)]
pub struct TokenLogprob {
    /// log softmax(logits / temperature) at the token.
    pub logp: Tensor,
    /// The entropy of softmax(logits / temperature).
    pub entropy: Tensor,
}

/// The log-probability of each token and the entropy of the distribution it was drawn from.
/// See [`crate::reference::logprob::token`].
///
/// # Errors
/// `rank` or `shape` if the shapes do not fit, `option` for a temperature that is not above 0, `input` if `tokens` is
/// not of 64-bit integers, `index` for a token outside the vocabulary if the tensors are on the CPU: on another device
/// the caller answers for the range.
pub fn token(logits: &Tensor, tokens: &Tensor, options: &Softmax) -> Result<TokenLogprob> {
    options.check()?;
    let axes = Axes::default().bind("logits", &["B", "T", "V"], &logits.size())?;
    let vocabulary = axes.bind("tokens", &["B", "T"], &tokens.size())?.length("V");
    of_kind("tokens", tokens, Kind::Int64)?;
    if tokens.device() == Device::Cpu {
        in_range(tokens, vocabulary)?;
    }
    let z = at_least_f32(logits) / options.temperature;
    let log_sum_exp = z.logsumexp([-1], true);
    let logp = z.gather(-1, &tokens.unsqueeze(-1), false) - &log_sum_exp;
    let entropy = entropy_of(&z, &log_sum_exp);
    Ok(TokenLogprob { logp: logp.squeeze_dim(-1), entropy })
}

fn in_range(tokens: &Tensor, vocabulary: usize) -> Result<()> {
    let flat = tokens.flatten(0, -1);
    let outside = flat.lt(0).logical_or(&flat.ge(vocabulary as i64)).nonzero();
    if outside.numel() == 0 {
        return Ok(());
    }
    let index = outside.int64_value(&[0, 0]);
    let got = flat.int64_value(&[index]);
    Err(Error::Index { argument: "tokens".to_owned(), index: index as usize, got, limit: vocabulary })
}

/// The entropy of the distribution that a token is drawn from. See [`crate::reference::logprob::entropy`].
///
/// # Errors
/// `rank` if the logits have not three axes, `option` for a temperature that is not above 0.
pub fn entropy(logits: &Tensor, options: &Softmax) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("logits", &["B", "T", "V"], &logits.size())?;
    let z = at_least_f32(logits) / options.temperature;
    Ok(entropy_of(&z, &z.logsumexp([-1], true)))
}

/// log sum_v exp(z_v) - sum_v p_v z_v, where a token that is ruled out (z = -inf) adds nothing.
fn entropy_of(z: &Tensor, log_sum_exp: &Tensor) -> Tensor {
    let probabilities = (z - log_sum_exp).exp();
    let possible = z.masked_fill(&z.eq(f64::NEG_INFINITY), 0.0);
    log_sum_exp.squeeze_dim(-1) - (probabilities * possible).sum_dim_intlist(-1, false, None)
}

/// The importance ratio of the policy to the one that the tokens were drawn from.
/// See [`crate::reference::logprob::ratio`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
pub fn ratio(logp: &Tensor, logp_old: &Tensor, options: &Ratio) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind(
        "logp_old",
        &["B", "T"],
        &logp_old.size(),
    )?;
    Ok(log_ratio(logp, logp_old, options).exp())
}

/// logp - logp_old within the clamp; the old policy is a constant.
pub(super) fn log_ratio(logp: &Tensor, logp_old: &Tensor, options: &Ratio) -> Tensor {
    clamp_both_ways(at_least_f32(logp) - at_least_f32(logp_old).detach(), options.log_ratio_clamp)
}

/// How much likelier a sequence is under the policy than under the one that drew it.
/// See [`crate::reference::logprob::sequence_ratio`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0, `input` if `response_mask` is not boolean.
pub fn sequence_ratio(
    logp: &Tensor,
    logp_old: &Tensor,
    response_mask: &Tensor,
    options: &SequenceRatio,
) -> Result<Tensor> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let log_ratio = sequence_log_ratio(
        &select(logp, response_mask),
        &select(logp_old, response_mask),
        response_mask,
        options.level,
    );
    Ok(clamp_both_ways(log_ratio, options.log_ratio_clamp).exp())
}

/// The mean or the sum of the kept tokens' log-ratios, 0 where none is kept; the old policy is a constant. Masked slots
/// have been emptied already.
pub(super) fn sequence_log_ratio(
    logp: &Tensor,
    logp_old: &Tensor,
    response_mask: &Tensor,
    level: SequenceLevel,
) -> Tensor {
    let sum = (at_least_f32(logp) - at_least_f32(logp_old).detach()).sum_dim_intlist(1, false, None);
    match level {
        SequenceLevel::Mean => sum / response_mask.sum_dim_intlist(1, false, Kind::Int64).clamp_min(1),
        SequenceLevel::Sum => sum,
    }
}

/// Within [-limit, limit], if there is a limit.
pub(super) fn clamp_both_ways(x: Tensor, limit: Option<f64>) -> Tensor {
    limit.map_or_else(|| x.shallow_clone(), |limit| x.clamp(-limit, limit))
}
