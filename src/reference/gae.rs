//! Temporal differences and generalised advantage estimation: advantages from a critic's values, token by token.

use ndarray::{Array2, ArrayRef2};

use super::Real;
use super::advantage::whitened;
use super::mask::kept;
use crate::Result;
use crate::axes::Axes;
use crate::options::{Gae, GaeMaskMode, TdError};

/// How much better a token went than the critic's value said, one step ahead.
///
/// ```text
/// delta_t = rewards_t + gamma V_next - V_t,   V_next = 0 after the last token
/// ```
///
/// Clauses `gae.td-error`, `gae.mask-mode`, `gae.stop`, `mask.select`. GAE (arXiv 1506.02438) section 3.
///
/// * `rewards`: `[B, T]`, one a token; constants, no gradient flows
/// * `values`: `[B, T]`, the critic's, in units of return; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets 0; [`TdError::mask_mode`] says what one between kept tokens does to the token before it. A
/// sequence without a kept token is all 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` if gamma is outside [0, 1].
///
/// # Example
/// ```
/// use grpo_oracle::{options::TdError, reference::gae};
/// use ndarray::array;
/// let (rewards, values) = (array![[0.0, f64::NAN, 1.0]], array![[0.25, f64::NAN, 0.5]]);
/// let mask = array![[true, false, true]];
/// assert_eq!(gae::td_error(&rewards, &values, &mask, &TdError::verl())?, array![[0.25, 0.0, 0.5]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn td_error<R: Real>(
    rewards: &ArrayRef2<R>,
    values: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &TdError,
) -> Result<Array2<R>> {
    options.check()?;
    let steps = steps(rewards, values, response_mask, options, 0.0)?;
    let mut td_error = Array2::from_elem(rewards.raw_dim(), R::constant(0.0));
    for step in steps {
        td_error[step.position] = step.td_error;
    }
    Ok(td_error)
}

/// What [`gae`] gives, both `[B, T]` and 0 in masked slots.
#[derive(Debug, Clone, PartialEq)]
pub struct GaeOutput<R> {
    /// The advantages, whitened if the options say so.
    pub advantages: Array2<R>,
    /// What the critic is trained towards: the advantages before whitening plus the values.
    pub returns: Array2<R>,
}

/// Generalised advantage estimation: the decaying sum of a token's own and all later temporal differences.
///
/// ```text
/// A_t       = sum_k (gamma lam)^k delta_{t+k}                                     Eq. 16
/// returns_t = A_t + V_t
/// A         = whiten(A) over the batch's kept tokens, if asked for
/// ```
///
/// Clauses `gae.advantage` and below, `gae.mask-mode`, `gae.stop`, `mask.select`. GAE (arXiv 1506.02438) Eq. 16;
/// PPO (arXiv 1707.06347) Eq. 11. Implementations split on masked slots and on whitening.
///
/// * `rewards`, `values`, `response_mask`: as for [`td_error`]
///
/// Masked slots get 0, and so does a sequence without a kept token. Advantages that are all equal are whitened to 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` if one is outside its domain, `too-few` if fewer tokens are kept than
/// whitening needs: 2 for the divisor n - 1, else 1.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Gae, reference::gae};
/// use ndarray::array;
/// let (rewards, values) = (array![[0.0, 0.0, 1.0]], array![[0.5, 0.25, 0.5]]);
/// let mask = array![[true, true, true]];
/// let output = gae::gae(&rewards, &values, &mask, &Gae::eq16(1.0, 1.0))?;
/// assert_eq!(output.advantages, array![[0.5, 0.75, 0.5]]); // what is still to come, minus the value
/// assert_eq!(output.returns, array![[1.0, 1.0, 1.0]]);
/// let output = gae::gae(&rewards, &values, &mask, &Gae::eq16(1.0, 0.0))?;
/// assert_eq!(output.advantages, array![[-0.25, 0.25, 0.5]]); // one step ahead
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn gae<R: Real>(
    rewards: &ArrayRef2<R>,
    values: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Gae,
) -> Result<GaeOutput<R>> {
    options.check()?;
    let steps = steps(rewards, values, response_mask, &options.td_error, options.lam)?;
    let zero = Array2::from_elem(rewards.raw_dim(), R::constant(0.0));
    let (mut advantages, mut returns) = (zero.clone(), zero);
    for step in steps {
        advantages[step.position] = step.advantage;
        returns[step.position] = step.advantage + values[step.position].detach();
    }
    // These advantages are computed, so that rounding may decide whether they are all equal.
    let compared: Vec<R> = kept(&advantages, response_mask).collect();
    let advantages = whitened(&advantages, response_mask, &options.whiten, &compared)?;
    Ok(GaeOutput { advantages, returns })
}

/// A kept token.
struct Step<R> {
    position: (usize, usize),
    td_error: R,
    advantage: R,
}

/// The kept tokens of every sequence.
fn steps<R: Real>(
    rewards: &ArrayRef2<R>,
    values: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &TdError,
    lam: f64,
) -> Result<Vec<Step<R>>> {
    Axes::default()
        .bind("rewards", &["B", "T"], rewards.shape())?
        .bind("values", &["B", "T"], values.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let (zero, gamma, lam) = (R::constant(0.0), R::constant(options.gamma), R::constant(lam));
    let mut steps = Vec::new();
    for (row, mask) in response_mask.rows().into_iter().enumerate() {
        let passed: Vec<usize> =
            (0..mask.len()).filter(|&t| mask[t] || options.mask_mode == GaeMaskMode::None).collect();
        let reward = |t: usize| if mask[t] { rewards[[row, t]] } else { zero };
        let value = |t: usize| if mask[t] { values[[row, t]].detach() } else { zero };
        let td_error = |place: usize| {
            let value_next = passed.get(place + 1).map_or(zero, |&next| value(next));
            R::sum([reward(passed[place]), gamma * value_next, -value(passed[place])])
        };
        let td_errors: Vec<R> = (0..passed.len()).map(td_error).collect();
        for (place, &t) in passed.iter().enumerate().filter(|&(_, &t)| mask[t]) {
            let mut decay = R::constant(1.0);
            let advantage = R::sum(td_errors[place..].iter().map(|&td_error| {
                let term = decay * td_error;
                decay = decay * gamma * lam;
                term
            }));
            steps.push(Step { position: (row, t), td_error: td_errors[place], advantage });
        }
    }
    Ok(steps)
}
