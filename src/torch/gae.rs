//! Temporal differences and generalised advantage estimation: advantages from a critic's values, token by token.

use tch::{Kind, Tensor};

use super::advantage::whitened;
use super::{at_least_f32, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Gae, GaeMaskMode, TdError};

/// Temporal differences, `[B, T]`. See [`crate::reference::gae::td_error`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if gamma is outside [0, 1], `input` if `response_mask` is not boolean.
pub fn td_error(
    rewards: &Tensor,
    values: &Tensor,
    response_mask: &Tensor,
    options: &TdError,
) -> Result<Tensor> {
    options.check()?;
    let steps = Steps::of(rewards, values, response_mask, options)?;
    Ok(select(&steps.back(&steps.td_error), response_mask))
}

/// What [`gae`] gives, both `[B, T]` and 0 in masked slots.
#[derive(Debug)]
pub struct GaeOutput {
    /// The advantages, whitened if the options say so.
    pub advantages: Tensor,
    /// What the critic is trained towards: the advantages before whitening plus the values.
    pub returns: Tensor,
}

/// Generalised advantage estimation. See [`crate::reference::gae::gae`].
///
/// The recursion is a sum over ever longer stretches: as many vector operations as the logarithm of T.
///
/// # Errors
/// `shape` if the shapes differ, `option` if one is outside its domain, `input` if `response_mask` is not boolean,
/// `too-few` if fewer tokens are kept than whitening needs and the tensors are on the CPU: on another device the
/// advantages are then 0.
pub fn gae(rewards: &Tensor, values: &Tensor, response_mask: &Tensor, options: &Gae) -> Result<GaeOutput> {
    options.check()?;
    let steps = Steps::of(rewards, values, response_mask, &options.td_error)?;
    let decay = options.td_error.gamma * options.lam;
    let advantages = select(&steps.back(&decaying_sums(&steps.td_error, decay, None)), response_mask);
    let returns = &advantages + select(&at_least_f32(values).detach(), response_mask);
    let advantages = whitened(&advantages, response_mask, &options.whiten)?;
    Ok(GaeOutput { advantages, returns })
}

/// The slots that the recursion goes through.
struct Steps {
    td_error: Tensor,
    /// How the slots were moved, if masked ones are passed over.
    front: Option<Front>,
}

impl Steps {
    fn of(rewards: &Tensor, values: &Tensor, response_mask: &Tensor, options: &TdError) -> Result<Self> {
        Axes::default()
            .bind("rewards", &["B", "T"], &rewards.size())?
            .bind("values", &["B", "T"], &values.size())?
            .bind("response_mask", &["B", "T"], &response_mask.size())?;
        of_kind("response_mask", response_mask, Kind::Bool)?;
        let front = match options.mask_mode {
            GaeMaskMode::Carry => Some(Front::of(response_mask)),
            GaeMaskMode::None => None,
        };
        let arranged = |tensor: &Tensor| {
            let kept = select(&at_least_f32(tensor).detach(), response_mask);
            front.as_ref().map_or_else(|| kept.shallow_clone(), |front| front.of_kept(&kept))
        };
        let (rewards, values) = (arranged(rewards), arranged(values));
        let next = values.slice(1, 1, None, 1).constant_pad_nd([0, values.size()[1].min(1)]);
        Ok(Self { td_error: rewards + next * options.gamma - values, front })
    }

    /// What was found of the steps, in the places of their slots.
    fn back(&self, of_steps: &Tensor) -> Tensor {
        self.front.as_ref().map_or_else(|| of_steps.shallow_clone(), |front| front.back(of_steps))
    }
}

/// Of every entry, the sum of it and of all that follow it in its row, each weaker by `decay` than the one before; only
/// of those with the same number in `parts`, if there are any, which rise along the row.
///
/// After k rounds an entry holds the sum of 2^k.
pub(super) fn decaying_sums(values: &Tensor, decay: f64, parts: Option<&Tensor>) -> Tensor {
    if decay == 1.0 && parts.is_none() {
        return values.flip([1]).cumsum(1, values.kind()).flip([1]);
    }
    let sums = values.copy();
    let width = values.size()[1];
    let (mut reach, mut factor) = (1, decay);
    while reach < width && factor != 0.0 {
        let (near, far) = (0, reach);
        let of = |tensor: &Tensor, start: i64| tensor.narrow(1, start, width - reach);
        let mut added = of(&sums, far) * factor;
        if let Some(parts) = parts {
            added = added.masked_fill(&of(parts, near).ne_tensor(&of(parts, far)), 0.0);
        }
        _ = of(&sums, near).g_add_(&added);
        reach *= 2;
        factor *= factor;
    }
    sums
}

/// The kept tokens of every sequence moved to its front, so that they are each other's neighbours, and back.
#[derive(Debug)]
pub(super) struct Front {
    /// The number of kept tokens before each slot, itself left out where it is masked.
    place: Tensor,
    mask: Tensor,
}

impl Front {
    pub(super) fn of(mask: &Tensor) -> Self {
        let place = (mask.cumsum(1, Kind::Int64) - 1).clamp_min(0);
        Self { place, mask: mask.shallow_clone() }
    }

    /// The kept entries at the front, 0 behind them.
    pub(super) fn of_kept(&self, values: &Tensor) -> Tensor {
        placed(values, &self.place.masked_fill(&self.mask.logical_not(), values.size()[1]))
    }

    /// What stands at the front, in the places where its tokens came from; anything in masked slots.
    pub(super) fn back(&self, values: &Tensor) -> Tensor {
        values.gather(1, &self.place, false)
    }
}

/// The entries at other places of their rows, 0 at those left; what goes to place T is dropped.
pub(super) fn placed(values: &Tensor, place: &Tensor) -> Tensor {
    let (rows, width) = (values.size()[0], values.size()[1]);
    let wide = values.new_zeros([rows, width + 1], (values.kind(), values.device()));
    wide.scatter(1, place, values).narrow(1, 0, width)
}
