//! Advantages: how much better a response is than the others of its group, or than another baseline.

use tch::{Device, Kind, Tensor};

use super::gae::{Front, decaying_sums};
use super::{at_least_f32, mask, of_kind, select};
use crate::axes::Axes;
use crate::options::{
    EpsMode, Gpg, GpgAlpha, GroupNorm, GroupStd, LoneMember, MaskedReturn, Opo, PassAtKAdvantage,
    ReinforcePlusPlus, ReinforcePlusPlusBaseline, Rloo, Singleton, StdScope, WhitenAdvantages,
};
use crate::{Error, Result};

/// Group-normalised advantages. See [`crate::reference::advantage::group_norm`].
///
/// Groups are found by sorting the labels, so they may be any numbers in any order, and nothing waits for the device;
/// only [`Singleton::Error`] has to look.
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad eps, `group-size` for a group of one under `Singleton::Error`,
/// `input` if `group` is not of 64-bit integers.
pub fn group_norm(rewards: &Tensor, group: &Tensor, options: &GroupNorm) -> Result<Tensor> {
    options.check()?;
    let (rewards, groups) = grouped(rewards, group)?;
    if options.singleton == Singleton::Error {
        groups.reject_singletons(
            group,
            "at least 2 are needed; use singleton raw, unit_std or zero to allow one",
        )?;
    }
    Ok(normalised(&rewards, &groups, options))
}

/// Rewards normalised within their groups, of one among which none is an error.
pub(super) fn normalised(rewards: &Tensor, groups: &Groups, options: &GroupNorm) -> Tensor {
    if rewards.numel() == 0 {
        return rewards.shallow_clone();
    }
    let group_centred = rewards - groups.mean(rewards);
    let (centred, variance) = match options.std_scope {
        StdScope::Group => {
            let variance = variance(groups.sum(&group_centred.square()), &groups.size, options.std);
            (group_centred, variance)
        }
        StdScope::Batch => {
            let squares = (rewards - rewards.mean(rewards.kind())).square().sum(rewards.kind());
            let count = rewards.full_like(rewards.numel() as f64);
            (group_centred, variance(squares, &count, options.std))
        }
        StdScope::LeaveOneOut => {
            let (mean, squares) = of_others(rewards, groups);
            (rewards - mean, variance(squares, &(&groups.size - 1.0), options.std))
        }
    };
    let scaled = over_std(&centred, variance.as_ref(), options.eps, options.eps_mode);
    let scaled = match options.std_scope {
        StdScope::LeaveOneOut => centred.where_self(&others_agree(rewards, groups), &scaled),
        StdScope::Group | StdScope::Batch => scaled,
    };
    let alone = match options.singleton {
        Singleton::Zero | Singleton::Error => rewards.zeros_like(),
        Singleton::UnitStd if variance.is_some() && options.eps_mode != EpsMode::Threshold => {
            rewards / (1.0 + options.eps)
        }
        Singleton::Raw | Singleton::UnitStd => rewards.shallow_clone(),
    };
    alone.where_self(&groups.alone(), &scaled.masked_fill(&groups.constant(rewards), 0.0))
}

/// The variance of so many numbers from the sum of their squared distances, if there is to be a division.
fn variance(squares: Tensor, count: &Tensor, std: GroupStd) -> Option<Tensor> {
    match std {
        GroupStd::Sample => Some(squares / (count - 1.0).clamp_min(1.0)),
        GroupStd::Population => Some(squares / count.clamp_min(1.0)),
        GroupStd::None => None,
    }
}

/// Centred rewards over their deviation, if they have one.
fn over_std(centred: &Tensor, variance: Option<&Tensor>, eps: f64, eps_mode: EpsMode) -> Tensor {
    match (variance, eps_mode) {
        (None, _) => centred.shallow_clone(),
        (Some(variance), EpsMode::Add) => centred / (variance.sqrt() + eps),
        (Some(variance), EpsMode::FloorVariance) => centred / (variance.clamp_min(eps).sqrt() + eps),
        (Some(variance), EpsMode::Threshold) => {
            let std = variance.sqrt();
            (centred / &std).masked_fill(&std.lt(eps), 0.0)
        }
    }
}

/// What [`relative`] gives.
#[derive(Debug)]
pub struct Relative {
    /// `[B]`: each reward less its baseline.
    pub relative: Tensor,
    /// `[B]`: the mean reward of the sequence's group.
    pub baseline: Tensor,
}

/// Each reward less its group's mean, and that mean. See [`crate::reference::advantage::relative`].
///
/// # Errors
/// `shape` if the lengths differ, `input` if `group` is not of 64-bit integers.
pub fn relative(rewards: &Tensor, group: &Tensor) -> Result<Relative> {
    let (rewards, groups) = grouped(rewards, group)?;
    let baseline = groups.mean_of_inputs(&rewards);
    Ok(Relative { relative: rewards - &baseline, baseline })
}

/// Leave-one-out advantages. See [`crate::reference::advantage::rloo`].
///
/// # Errors
/// `shape` if the lengths differ, `group-size` for a group of one under `LoneMember::Error`, which alone waits for the
/// device, `input` if `group` is not of 64-bit integers.
pub fn rloo(rewards: &Tensor, group: &Tensor, options: &Rloo) -> Result<Tensor> {
    let (rewards, groups) = grouped(rewards, group)?;
    reject_lone_members(&groups, group, options.singleton)?;
    let of_others = (groups.sum(&rewards) - &rewards) / (&groups.size - 1.0);
    Ok(less_baseline(&rewards, &of_others, &groups, options.singleton))
}

/// What the estimators over tokens give.
#[derive(Debug)]
pub struct TokenAdvantages {
    /// `[B, T]`, 0 at masked slots.
    pub advantages: Tensor,
    /// `[B, T]`: the return from each token on, before a baseline or whitening; 0 at masked slots.
    pub returns: Tensor,
}

/// Whitened returns. See [`crate::reference::advantage::reinforce_plus_plus`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a bad gamma or eps, `input` if `response_mask` is not boolean, `too-few`
/// if whitening has no more than `ddof` tokens and the tensors are on the CPU: on another device everything is then 0.
pub fn reinforce_plus_plus(
    rewards: &Tensor,
    response_mask: &Tensor,
    options: &ReinforcePlusPlus,
) -> Result<TokenAdvantages> {
    options.check()?;
    Axes::default().bind("rewards", &["B", "T"], &rewards.size())?.bind(
        "response_mask",
        &["B", "T"],
        &response_mask.size(),
    )?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let rewards = select(&at_least_f32(rewards).detach(), response_mask);
    let returns = returns_to_go(&rewards, response_mask, options.gamma, options.mask_mode);
    let advantages = whitened(&returns, response_mask, &options.whiten)?;
    Ok(TokenAdvantages { advantages, returns })
}

/// Rewards less their group's mean at every kept token, whitened.
/// See [`crate::reference::advantage::reinforce_plus_plus_baseline`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a bad eps, `input` for a mask or labels of another kind, `group-size` for
/// a group of one under `LoneMember::Error`, which waits for the device, `too-few` as for [`reinforce_plus_plus`].
pub fn reinforce_plus_plus_baseline(
    rewards: &Tensor,
    group: &Tensor,
    response_mask: &Tensor,
    options: &ReinforcePlusPlusBaseline,
) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], &rewards.size())?.bind("group", &["B"], &group.size())?.bind(
        "response_mask",
        &["B", "T"],
        &response_mask.size(),
    )?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let present = response_mask.any_dim(1, false);
    let (rewards, groups) = grouped(&select(rewards, &present), group)?;
    let groups = groups.without(&present.logical_not());
    reject_lone_members(&groups, group, options.singleton)?;
    let centred = less_baseline(&rewards, &groups.mean(&rewards), &groups, options.singleton);
    whitened(&centred.unsqueeze(1).expand_as(response_mask), response_mask, &options.whiten)
}

/// The return from each token on, less the reward of the greedy response.
/// See [`crate::reference::advantage::remax`].
///
/// # Errors
/// `shape` if the shapes differ, `input` if `response_mask` is not boolean.
pub fn remax(rewards: &Tensor, baselines: &Tensor, response_mask: &Tensor) -> Result<TokenAdvantages> {
    Axes::default()
        .bind("rewards", &["B", "T"], &rewards.size())?
        .bind("baselines", &["B"], &baselines.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let rewards = select(&at_least_f32(rewards).detach(), response_mask);
    let returns = returns_to_go(&rewards, response_mask, 1.0, MaskedReturn::Carry);
    let baselines = at_least_f32(baselines).detach().unsqueeze(1);
    let advantages = select(&(&returns - baselines), response_mask);
    Ok(TokenAdvantages { advantages, returns })
}

/// Each reward less the mean of its group, weighted by length. See [`crate::reference::advantage::opo`].
///
/// # Errors
/// `shape` if the lengths differ, `group-size` for a group of one under `LoneMember::Error`, which waits for the device,
/// `input` for labels that are not 64-bit integers and, if the tensors are on the CPU, for a negative length or a group
/// whose rewards differ and whose lengths are all 0: on another device the caller answers for them.
pub fn opo(rewards: &Tensor, group: &Tensor, lengths: &Tensor, options: &Opo) -> Result<Tensor> {
    Axes::default().bind("rewards", &["B"], &rewards.size())?.bind("group", &["B"], &group.size())?.bind(
        "lengths",
        &["B"],
        &lengths.size(),
    )?;
    let (rewards, groups) = grouped(rewards, group)?;
    let lengths = at_least_f32(lengths).detach();
    let total = groups.sum(&lengths);
    if lengths.device() == Device::Cpu {
        if is_any(&lengths.lt(0.0)) {
            return Err(Error::input("lengths", "has an entry below 0"));
        }
        if is_any(&total.eq(0.0).logical_and(&groups.constant(&rewards).logical_not())) {
            return Err(Error::input("lengths", "are all 0 in a group whose rewards differ"));
        }
    }
    reject_lone_members(&groups, group, options.singleton)?;
    let baseline = groups.sum(&(lengths * &rewards)) / total;
    Ok(less_baseline(&rewards, &baseline, &groups, options.singleton))
}

/// Centred rewards, scaled up for the samples without a gradient. See [`crate::reference::advantage::gpg`].
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad `f_norm`, `group-size` for a group of one under
/// `LoneMember::Error`, which alone waits for the device, `input` if `group` is not of 64-bit integers.
pub fn gpg(rewards: &Tensor, group: &Tensor, options: &Gpg) -> Result<Tensor> {
    options.check()?;
    let (rewards, groups) = grouped(rewards, group)?;
    reject_lone_members(&groups, group, options.singleton)?;
    let centred = less_baseline(&rewards, &groups.mean(&rewards), &groups, options.singleton);
    let share = |counted: Tensor| {
        let count = counted.sum(rewards.kind());
        count.full_like(rewards.numel() as f64) / count.clamp_min(1.0)
    };
    // Without a valid group every centred reward is 0, or a lone member's, which then counts for nothing.
    let scaled = match options.alpha {
        GpgAlpha::One => centred,
        GpgAlpha::NonzeroRewards => centred * share(rewards.ne(0.0)),
        GpgAlpha::ValidGroups => {
            let is_valid = groups.constant(&rewards).logical_not();
            (centred * share(is_valid.shallow_clone())).masked_fill(&is_valid.any().logical_not(), 0.0)
        }
    };
    Ok(scaled / options.f_norm)
}

/// The lead of the best of each group over the second best. See [`crate::reference::advantage::pass_at_k`].
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad eps, `input` if `group` is not of 64-bit integers, `group-size` for
/// a group of one if the tensors are on the CPU: on another device it gets 0.
pub fn pass_at_k(rewards: &Tensor, group: &Tensor, options: &PassAtKAdvantage) -> Result<Tensor> {
    options.check()?;
    let (rewards, groups) = grouped(rewards, group)?;
    if rewards.device() == Device::Cpu {
        groups.reject_singletons(
            group,
            "the best is compared with the second best, so at least 2 are needed",
        )?;
    }
    let rank = groups.rank(&rewards, true);
    let is_second = rank.eq(1);
    let second = groups.sum(&select(&rewards, &is_second));
    let squares = groups.sum(&(&rewards - groups.mean(&rewards)).square());
    let variance = variance(squares, &groups.size, options.std);
    let lead = over_std(&(&rewards - second), variance.as_ref(), options.eps, EpsMode::Add);
    let gets_none = rank.gt(0).logical_or(&groups.constant(&rewards));
    Ok(lead.masked_fill(&gets_none, 0.0))
}

/// The rewards in single precision at least, and their groups.
pub(super) fn grouped(rewards: &Tensor, group: &Tensor) -> Result<(Tensor, Groups)> {
    Axes::default().bind("rewards", &["B"], &rewards.size())?.bind("group", &["B"], &group.size())?;
    of_kind("group", group, Kind::Int64)?;
    let rewards = at_least_f32(rewards).detach();
    let groups = Groups::of(group, rewards.kind());
    Ok((rewards, groups))
}

/// Rewards less the baselines of their places: 0 for rewards that are all equal, but for a lone one as it may be.
fn less_baseline(rewards: &Tensor, baseline: &Tensor, groups: &Groups, singleton: LoneMember) -> Tensor {
    let centred = (rewards - baseline).masked_fill(&groups.constant(rewards), 0.0);
    match singleton {
        LoneMember::Raw => rewards.where_self(&groups.alone(), &centred),
        LoneMember::Zero | LoneMember::Error => centred,
    }
}

fn reject_lone_members(groups: &Groups, group: &Tensor, singleton: LoneMember) -> Result<()> {
    if singleton != LoneMember::Error {
        return Ok(());
    }
    groups.reject_singletons(group, "at least 2 are needed; use singleton raw or zero to allow one")
}

/// The discounted sum of the kept rewards, the others being 0, from each kept token on; 0 at masked slots.
fn returns_to_go(rewards: &Tensor, response_mask: &Tensor, gamma: f64, mask_mode: MaskedReturn) -> Tensor {
    let returns = match mask_mode {
        // A step that discounts nothing may as well be taken through masked slots.
        MaskedReturn::Carry if gamma == 1.0 => decaying_sums(rewards, gamma, None),
        MaskedReturn::Carry => {
            let front = Front::of(response_mask);
            front.back(&decaying_sums(&front.of_kept(rewards), gamma, None))
        }
        MaskedReturn::Reset => {
            let cuts = response_mask.logical_not().cumsum(1, Kind::Int64);
            decaying_sums(rewards, gamma, Some(&cuts))
        }
    };
    select(&returns, response_mask)
}

/// The kept values whitened, 0 elsewhere. No more than `ddof` kept ones are an error on the CPU alone.
pub(super) fn whitened(
    values: &Tensor,
    response_mask: &Tensor,
    options: &WhitenAdvantages,
) -> Result<Tensor> {
    if !options.whiten {
        return Ok(select(values, response_mask));
    }
    mask::whiten(values, response_mask, &options.options())
}

/// Which group each sequence belongs to, and how large that is.
#[derive(Debug)]
pub(super) struct Groups {
    /// `[B]`: groups are numbered in the order of their labels; B stands for none.
    index: Tensor,
    /// `[B]`: the number of members of each sequence's group.
    pub(super) size: Tensor,
}

impl Groups {
    fn of(group: &Tensor, kind: Kind) -> Self {
        Self::numbered(group_index(group), kind)
    }

    fn numbered(index: Tensor, kind: Kind) -> Self {
        let mut groups = Self { size: index.ones_like().to_kind(kind), index };
        groups.size = groups.sum(&groups.size);
        groups
    }

    /// The groups without some of their members, who are then in none.
    pub(super) fn without(&self, absent: &Tensor) -> Self {
        let none = self.index.size()[0];
        Self::numbered(self.index.masked_fill(absent, none), self.size.kind())
    }

    /// The sum over each sequence's group.
    pub(super) fn sum(&self, of_members: &Tensor) -> Tensor {
        self.per_group(of_members).index_add(0, &self.index, of_members).index_select(0, &self.index)
    }

    /// The mean over each sequence's group.
    pub(super) fn mean(&self, of_members: &Tensor) -> Tensor {
        self.sum(of_members) / &self.size
    }

    /// The mean of inputs over each sequence's group: that of equal ones is that number, whatever their sum rounds to.
    pub(super) fn mean_of_inputs(&self, of_members: &Tensor) -> Tensor {
        of_members.where_self(&self.constant(of_members), &self.mean(of_members))
    }

    /// Whether the members of each sequence's group are all equal. That is seen by their values: rounding gives equal
    /// ones a mean and a deviation of their own.
    pub(super) fn constant(&self, of_members: &Tensor) -> Tensor {
        let any_member = self.per_group(of_members).scatter(0, &self.index, of_members);
        let differs = of_members.ne_tensor(&any_member.index_select(0, &self.index));
        self.sum(&differs.to_kind(self.size.kind())).eq(0.0)
    }

    /// Whether each sequence is the only one of its group.
    pub(super) fn alone(&self) -> Tensor {
        self.size.eq(1.0).logical_and(&self.index.lt(self.index.size()[0]))
    }

    /// The place, from 0, of each sequence among those of its group in the order of these values, of equal ones in the
    /// order of the batch.
    pub(super) fn rank(&self, values: &Tensor, descending: bool) -> Tensor {
        let by_value = values.sort_stable(true, 0, descending).1;
        let within = self.index.index_select(0, &by_value).sort_stable(true, 0, false).1;
        let order = by_value.index_select(0, &within);
        let places = Tensor::arange(order.size()[0], (Kind::Int64, order.device()));
        let place = order.zeros_like().scatter(0, &order, &places);
        let sizes = self.per_group(&place).index_add(0, &self.index, &place.ones_like());
        place - (sizes.cumsum(0, Kind::Int64) - &sizes).index_select(0, &self.index)
    }

    /// The number of groups to which some member of this kind belongs.
    pub(super) fn count(&self, is_counted: &Tensor) -> Tensor {
        let counted = is_counted.to_kind(self.size.kind());
        let per_group = self.per_group(&counted).index_add(0, &self.index, &counted);
        per_group.gt(0.0).sum(counted.kind())
    }

    /// `[B, B]`: whether the column is a member of the row's group, itself included.
    pub(super) fn pairs(&self) -> Tensor {
        self.index.unsqueeze(1).eq_tensor(&self.index.unsqueeze(0))
    }

    /// 0 for every group, and for those who are in none.
    fn per_group(&self, like: &Tensor) -> Tensor {
        like.new_zeros([self.index.size()[0] + 1], (like.kind(), like.device()))
    }

    fn reject_singletons(&self, group: &Tensor, need: &'static str) -> Result<()> {
        let alone = group.masked_select(&self.alone());
        if alone.numel() == 0 {
            return Ok(());
        }
        Err(Error::GroupSize { group: alone.int64_value(&[0]), size: 1, need })
    }
}

/// Each member's group, numbered from 0 in the order of the labels.
fn group_index(group: &Tensor) -> Tensor {
    let (labels, order) = group.sort(0, false);
    let last = (labels.size()[0] - 1).max(0);
    let is_new = labels.slice(0, 1, None, 1).ne_tensor(&labels.narrow(0, 0, last));
    let number = is_new.constant_pad_nd([labels.size()[0] - last, 0]).cumsum(0, Kind::Int64);
    order.zeros_like().scatter(0, &order, &number)
}

/// Of each member's group without it: the mean, and the sum of the squared distances from that. Summed over all pairs of
/// the batch, because taking one reward's share out of the group's sums would cancel where that reward is far off.
fn of_others(rewards: &Tensor, groups: &Groups) -> (Tensor, Tensor) {
    let outsiders = outsiders(groups);
    let sum = |values: &Tensor| values.masked_fill(&outsiders, 0.0).sum_dim_intlist(1, false, rewards.kind());
    let mean = sum(&rewards.expand_as(&outsiders)) / (&groups.size - 1.0).clamp_min(1.0);
    let squares = sum(&(rewards - mean.unsqueeze(1)).square());
    (mean, squares)
}

/// Whether the members of each member's group without it have one and the same reward.
fn others_agree(rewards: &Tensor, groups: &Groups) -> Tensor {
    let outsiders = outsiders(groups);
    let of_pairs = rewards.expand_as(&outsiders);
    let largest = of_pairs.masked_fill(&outsiders, f64::NEG_INFINITY).amax(1, false);
    let smallest = of_pairs.masked_fill(&outsiders, f64::INFINITY).amin(1, false);
    largest.eq_tensor(&smallest)
}

/// `[B, B]`: whether the column is the row itself or no member of its group.
fn outsiders(groups: &Groups) -> Tensor {
    let same = groups.pairs();
    let itself = Tensor::eye(same.size()[0], (Kind::Bool, same.device()));
    same.logical_not().logical_or(&itself)
}

/// Whether any entry is true, which waits for the device.
fn is_any(flags: &Tensor) -> bool {
    flags.any().int64_value(&[]) != 0
}
