//! Sampling: how often a prompt is asked, which groups are kept, and from which distribution tokens are drawn.

use tch::{Kind, Tensor};

use super::advantage::grouped;
use super::{at_least_f32, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Distribution, Dynamic, DynamicRule, DynamicSingleton, Repeat, Resample};

/// The batch with every prompt as often as it is to be answered, of the kind that it was given in.
/// See [`crate::reference::sampling::repeat`].
///
/// # Errors
/// `option` if n is not from 1 to 65,536, `rank` if `index` has not one axis.
pub fn repeat(index: &Tensor, options: &Repeat) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("index", &["B"], &index.size())?;
    let n = options.n as i64;
    Ok(if options.interleave {
        index.unsqueeze(1).expand([-1, n], false).flatten(0, -1)
    } else {
        index.repeat([n])
    })
}

/// What [`dynamic`] gives.
#[derive(Debug)]
pub struct DynamicOutput {
    /// 1 for a sequence of a group that is kept, else 0; `[B]`.
    pub keep: Tensor,
    /// How many groups are kept, without axes.
    pub kept_groups: Tensor,
}

/// Which groups are worth training on. See [`crate::reference::sampling::dynamic`].
///
/// # Errors
/// `shape` if the lengths differ, `option` if the bounds are not in order, `input` if `group` is not of 64-bit integers.
pub fn dynamic(rewards: &Tensor, group: &Tensor, options: &Dynamic) -> Result<DynamicOutput> {
    options.check()?;
    let (rewards, groups) = grouped(rewards, group)?;
    let keep = match (options.rule, options.singleton) {
        (DynamicRule::Differ, DynamicSingleton::Keep) => {
            groups.constant(&rewards).logical_not().logical_or(&groups.alone())
        }
        (DynamicRule::Differ, DynamicSingleton::Drop) => groups.constant(&rewards).logical_not(),
        (DynamicRule::MeanInRange, _) => {
            let mean = groups.mean_of_inputs(&rewards);
            mean.gt(options.low).logical_and(&mean.lt(options.high))
        }
    };
    Ok(DynamicOutput { kept_groups: groups.count(&keep), keep: keep.to_kind(rewards.kind()) })
}

/// What [`resample`] gives.
#[derive(Debug)]
pub struct ResampleOutput {
    /// 1 for a sample that is taken into its group, else 0; `[B]`.
    pub taken: Tensor,
    /// How many groups still want a sample after those given, without axes.
    pub unfinished: Tensor,
}

/// Which samples are taken where each group is added to until its rewards differ.
/// See [`crate::reference::sampling::resample`].
///
/// Every sample is held against all that were drawn before it, over the pairs of the batch.
///
/// # Errors
/// `shape` if the lengths differ, `option` if an option is outside its domain, `input` if `group` is not of 64-bit
/// integers.
pub fn resample(rewards: &Tensor, group: &Tensor, options: &Resample) -> Result<ResampleOutput> {
    options.check()?;
    let (rewards, groups) = grouped(rewards, group)?;
    let limit = |samples: usize| samples.min(rewards.numel() + 1) as i64;
    let (group_size, max_samples) = (limit(options.group_size), limit(options.max_samples));
    // Of the row's sample: those drawn for its group up to it, and before it.
    let pairs = groups.pairs();
    let (up_to_it, before_it) = (pairs.tril(0), pairs.tril(-1));
    let drawn = up_to_it.sum_dim_intlist(1, false, Kind::Int64);
    let is_enough = drawn.ge(group_size).logical_and(&equal(&rewards, &up_to_it, options).logical_not());
    let wanted = before_it.logical_and(&is_enough.unsqueeze(0)).any_dim(1, false).logical_not();
    let taken = wanted.logical_and(&drawn.le(max_samples));

    let is_done = groups.sum(&is_enough.to_kind(rewards.kind())).gt(0.0);
    let wants = is_done.logical_not().logical_and(&groups.size.lt(max_samples));
    Ok(ResampleOutput { taken: taken.to_kind(rewards.kind()), unfinished: groups.count(&wants) })
}

/// Whether the rewards that each row selects are all equal, or their sample standard deviation is below the tolerance.
fn equal(rewards: &Tensor, selected: &Tensor, options: &Resample) -> Tensor {
    let kind = rewards.kind();
    let sum = |of_pairs: &Tensor| select(of_pairs, selected).sum_dim_intlist(1, false, kind);
    let is_other = rewards.unsqueeze(1).ne_tensor(&rewards.unsqueeze(0));
    let are_same = is_other.logical_and(selected).any_dim(1, false).logical_not();
    if options.tolerance == 0.0 {
        return are_same;
    }
    let count = selected.sum_dim_intlist(1, false, kind);
    let mean = sum(&rewards.expand_as(selected)) / &count;
    let squares = sum(&(rewards - mean.unsqueeze(1)).square());
    let std = (squares / (count - 1.0).clamp_min(1.0)).sqrt();
    are_same.logical_or(&std.lt(options.tolerance))
}

/// The distribution that a token is drawn from, `[B, V]`. See [`crate::reference::sampling::distribution`].
///
/// The vocabulary is sorted only where top-k or top-p asks for it. A row that rules every token out gets 0 throughout.
///
/// # Errors
/// `rank` if there are not two axes, `option` if an option is outside its domain.
pub fn distribution(logits: &Tensor, options: &Distribution) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("logits", &["B", "V"], &logits.size())?;
    let logits = at_least_f32(logits).detach();
    if logits.numel() == 0 {
        return Ok(logits);
    }
    let largest = logits.amax(1, true);
    let is_possible = logits.gt(f64::NEG_INFINITY);
    if options.temperature == 0.0 {
        let is_largest = logits.eq_tensor(&largest).logical_and(&is_possible);
        let is_first = is_largest.cumsum(1, Kind::Int64).eq(1);
        return Ok(is_largest.logical_and(&is_first).to_kind(logits.kind()));
    }
    let z = |logits: &Tensor| logits / options.temperature;
    let weights = select(&(z(&logits) - z(&largest)).exp(), &is_possible);
    let weights = match (options.top_k, options.top_p.filter(|&p| p < 1.0)) {
        (None, None) => weights,
        (top_k, top_p) => filtered(&weights, &logits, top_k, top_p),
    };
    // The most likely token has the weight 1.
    Ok(&weights / weights.sum_dim_intlist(1, true, weights.kind()).clamp_min(1.0))
}

/// The weights with 0 for all but the `top_k` most likely tokens, and of those for all before which `top_p` is reached.
fn filtered(weights: &Tensor, logits: &Tensor, top_k: Option<usize>, top_p: Option<f64>) -> Tensor {
    let (width, kind) = (logits.size()[1], weights.kind());
    // Stable, so that equal logits stay in the order of their ids.
    let order = logits.sort_stable(true, 1, true).1;
    let mut sorted = weights.gather(1, &order, false);
    if let Some(k) = top_k.filter(|&k| k < width as usize) {
        _ = sorted.narrow(1, k as i64, width - k as i64).zero_();
    }
    if let Some(p) = top_p {
        let before = sorted.cumsum(1, kind).narrow(1, 0, width - 1).constant_pad_nd([1, 0]);
        let is_behind = (before / sorted.sum_dim_intlist(1, true, kind)).ge(p);
        sorted = sorted.masked_fill(&is_behind, 0.0);
    }
    sorted.scatter(1, &order, &sorted)
}
