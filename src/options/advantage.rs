//! Options of `advantage.*`.

use serde::{Deserialize, Serialize};

use super::{Ddof, Whiten, WhitenEps, not_negative, positive, share};
use crate::Result;

/// Which standard deviation divides a group's centred rewards (clause `advantage.group-norm.std`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupStd {
    /// Divisor n - 1, as `torch.std` computes it.
    Sample,
    /// Divisor n, as `numpy.std` computes it.
    Population,
    /// No division at all: Dr. GRPO, Eq. 31.
    None,
}

/// Whose standard deviation it is (clause `advantage.group-norm.scope`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdScope {
    /// The group's, as its mean.
    Group,
    /// The whole batch's, about the batch's own mean; what is subtracted is still the group's mean.
    Batch,
    /// That of the other members of the group, as is the mean.
    LeaveOneOut,
}

/// How `eps` keeps the quotient finite (clause `advantage.group-norm.eps`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpsMode {
    /// `(r - mean) / (std + eps)`.
    Add,
    /// `(r - mean) / std`, and 0 where the std is below eps.
    Threshold,
    /// `(r - mean) / (sqrt(max(variance, eps)) + eps)`.
    FloorVariance,
}

/// What the only member of a group gets (clause `advantage.group-norm.singleton`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Singleton {
    /// Its own reward.
    Raw,
    /// Its reward normalised with mean 0 and standard deviation 1, as verl does: r / (1 + eps).
    UnitStd,
    /// 0.
    Zero,
    /// The error `group-size`.
    Error,
}

/// Options of `advantage.group_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// The divisor.
    pub std: GroupStd,
    /// Whose standard deviation it is.
    pub std_scope: StdScope,
    /// The small number; not negative.
    pub eps: f64,
    /// What `eps` does.
    pub eps_mode: EpsMode,
    /// What a group of one gets.
    pub singleton: Singleton,
}

impl GroupNorm {
    /// Eq. 28 with the sample standard deviation and eps 1e-6; the specification's default.
    pub fn eq28() -> Self {
        Self {
            std: GroupStd::Sample,
            std_scope: StdScope::Group,
            eps: 1e-6,
            eps_mode: EpsMode::Add,
            singleton: Singleton::Raw,
        }
    }

    /// Eq. 31 (Dr. GRPO): the mean is subtracted and nothing is divided.
    pub fn dr_grpo() -> Self {
        Self { std: GroupStd::None, ..Self::eq28() }
    }

    /// DeepSeekMath 4.1.2, which has no eps and only says "std": the sample one is our reading, an error for groups of
    /// one too.
    pub fn deepseek_math() -> Self {
        Self { eps: 0.0, singleton: Singleton::Error, ..Self::eq28() }
    }

    /// verl `grpo`, all versions.
    pub fn verl() -> Self {
        Self { singleton: Singleton::UnitStd, ..Self::eq28() }
    }

    /// verl `grpo_vectorized` 0.6.0 to 0.7.1: 1e-6 under the variance and once more beside the std.
    pub fn verl_vectorized_0_7() -> Self {
        Self { eps_mode: EpsMode::FloorVariance, ..Self::verl() }
    }

    /// EasyR1: as Eq. 28, and groups of one are refused.
    pub fn easyr1() -> Self {
        Self { singleton: Singleton::Error, ..Self::eq28() }
    }

    /// EasyR1-Brian, the code behind `000_compute_new_adv.md`: nothing is added, a std below 1e-6 gives 0.
    pub fn easyr1_brian() -> Self {
        Self { eps_mode: EpsMode::Threshold, ..Self::easyr1() }
    }

    /// TRL 1.16, `scale_rewards="group"`.
    pub fn trl() -> Self {
        Self { eps: 1e-4, singleton: Singleton::Zero, ..Self::eq28() }
    }

    /// TRL 1.16, `scale_rewards="batch"`.
    pub fn trl_batch() -> Self {
        Self { std_scope: StdScope::Batch, ..Self::trl() }
    }

    /// OpenRLHF 0.11 `group_norm`; its NaN for a group of one is an error here.
    pub fn openrlhf() -> Self {
        Self { eps: 1e-9, singleton: Singleton::Error, ..Self::eq28() }
    }

    /// NeMo-RL's default: mean and std of the other members.
    pub fn nemo() -> Self {
        Self { std_scope: StdScope::LeaveOneOut, singleton: Singleton::Zero, ..Self::eq28() }
    }

    /// open-instruct, `standard`: the population std and 1e-8.
    pub fn open_instruct() -> Self {
        Self { std: GroupStd::Population, eps: 1e-8, singleton: Singleton::Zero, ..Self::eq28() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if `eps` is negative or not finite.
    pub fn check(&self) -> Result<()> {
        not_negative("eps", self.eps)
    }
}

/// What the only member of a group gets where a baseline is subtracted and nothing divided (clause
/// `advantage.rloo.singleton`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoneMember {
    /// Its own reward: the baseline is 0.
    Raw,
    /// 0: the baseline is its own reward.
    Zero,
    /// The error `group-size`.
    Error,
}

impl From<LoneMember> for Singleton {
    fn from(singleton: LoneMember) -> Self {
        match singleton {
            LoneMember::Raw => Self::Raw,
            LoneMember::Zero => Self::Zero,
            LoneMember::Error => Self::Error,
        }
    }
}

/// Options of `advantage.rloo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rloo {
    /// What a group of one gets.
    pub singleton: LoneMember,
}

impl Rloo {
    /// verl `rloo`: a group of one keeps its reward; the specification's default.
    pub fn verl() -> Self {
        Self { singleton: LoneMember::Raw }
    }

    /// TRL 1.16 and verl `rloo_vectorized`: a group of one gets 0.
    pub fn trl() -> Self {
        Self { singleton: LoneMember::Zero }
    }
}

/// What a masked token does to the return of the tokens before it (clause `advantage.reinforce-plus-plus.mask`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskedReturn {
    /// Nothing: it is passed over.
    Carry,
    /// It cuts the response: no reward from behind it counts before it.
    Reset,
}

/// Whether and how advantages are whitened over the kept tokens; in JSON these stand beside a formula's own options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WhitenAdvantages {
    /// Whether they are whitened at all.
    pub whiten: bool,
    /// As [`Whiten::ddof`].
    pub whiten_ddof: Ddof,
    /// As [`Whiten::eps`].
    pub whiten_eps: f64,
    /// As [`Whiten::eps_mode`].
    pub whiten_eps_mode: WhitenEps,
}

impl WhitenAdvantages {
    /// Whitened as `mask.whiten` does with these options.
    pub fn with(options: &Whiten) -> Self {
        Self {
            whiten: true,
            whiten_ddof: options.ddof,
            whiten_eps: options.eps,
            whiten_eps_mode: options.eps_mode,
        }
    }

    /// Not whitened; the other options are then without effect.
    pub fn off() -> Self {
        Self { whiten: false, ..Self::with(&Whiten::verl()) }
    }

    /// The options of `mask.whiten`.
    pub fn options(&self) -> Whiten {
        Whiten {
            ddof: self.whiten_ddof,
            eps: self.whiten_eps,
            eps_mode: self.whiten_eps_mode,
            shift_mean: true,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        not_negative("whiten_eps", self.whiten_eps)
    }
}

/// Options of `advantage.reinforce_plus_plus`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReinforcePlusPlus {
    /// The discount of a token's successor; in [0, 1].
    pub gamma: f64,
    /// What a masked token does to the return.
    pub mask_mode: MaskedReturn,
    /// The whitening.
    #[serde(flatten)]
    pub whiten: WhitenAdvantages,
}

impl ReinforcePlusPlus {
    /// verl 0.9.1: undiscounted, masked tokens passed over; the specification's default.
    pub fn verl() -> Self {
        Self { gamma: 1.0, mask_mode: MaskedReturn::Carry, whiten: WhitenAdvantages::with(&Whiten::verl()) }
    }

    /// verl up to 0.8.0: a masked token cuts the return.
    pub fn verl_0_8() -> Self {
        Self { mask_mode: MaskedReturn::Reset, ..Self::verl() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if gamma is outside [0, 1] or the whitening's eps negative.
    pub fn check(&self) -> Result<()> {
        share("gamma", self.gamma)?;
        self.whiten.check()
    }
}

/// Options of `advantage.reinforce_plus_plus_baseline`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReinforcePlusPlusBaseline {
    /// What a group of one gets.
    pub singleton: LoneMember,
    /// The whitening.
    #[serde(flatten)]
    pub whiten: WhitenAdvantages,
}

impl ReinforcePlusPlusBaseline {
    /// verl 0.9.1; the specification's default.
    pub fn verl() -> Self {
        Self { singleton: LoneMember::Raw, whiten: WhitenAdvantages::with(&Whiten::verl()) }
    }

    /// OpenRLHF 0.11 `reinforce_baseline`: population variance of at least 1e-8. Its groups of one get 0.
    pub fn openrlhf() -> Self {
        Self { singleton: LoneMember::Zero, whiten: WhitenAdvantages::with(&Whiten::openrlhf()) }
    }

    /// slime without `--normalize-advantages`: nothing is whitened.
    pub fn slime() -> Self {
        Self { singleton: LoneMember::Zero, whiten: WhitenAdvantages::off() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the whitening's eps is negative.
    pub fn check(&self) -> Result<()> {
        self.whiten.check()
    }
}

/// Options of `advantage.opo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opo {
    /// What a group of one gets.
    pub singleton: LoneMember,
}

impl Opo {
    /// verl 0.9.1: the baseline of a group of one is 0.
    pub fn verl() -> Self {
        Self { singleton: LoneMember::Raw }
    }

    /// The paper's baseline, which for one response is its own reward; the specification's default.
    pub fn paper() -> Self {
        Self { singleton: LoneMember::Zero }
    }
}

/// The factor that makes up for samples without a gradient (clause `advantage.gpg.alpha`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpgAlpha {
    /// All samples over those whose reward is not 0.
    NonzeroRewards,
    /// All samples over those in groups whose rewards differ.
    ValidGroups,
    /// 1.
    One,
}

/// Options of `advantage.gpg`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gpg {
    /// The factor.
    pub alpha: GpgAlpha,
    /// The advantages are divided by it; above 0.
    pub f_norm: f64,
    /// What a group of one gets, times the factor.
    pub singleton: LoneMember,
}

impl Gpg {
    /// verl 0.9.1: the factor counts rewards that are not 0.
    pub fn verl() -> Self {
        Self { alpha: GpgAlpha::NonzeroRewards, f_norm: 1.0, singleton: LoneMember::Raw }
    }

    /// The paper: the factor counts the samples that have a gradient; the specification's default.
    pub fn paper() -> Self {
        Self { alpha: GpgAlpha::ValidGroups, singleton: LoneMember::Zero, ..Self::verl() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if `f_norm` is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive("f_norm", self.f_norm)
    }
}

/// Options of `advantage.pass_at_k`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PassAtKAdvantage {
    /// What divides the lead of the best.
    pub std: GroupStd,
    /// Added to the standard deviation; not negative.
    pub eps: f64,
}

impl PassAtKAdvantage {
    /// verl `grpo_passk`; the specification's default.
    pub fn verl() -> Self {
        Self { std: GroupStd::Sample, eps: 1e-6 }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if `eps` is negative or not finite.
    pub fn check(&self) -> Result<()> {
        not_negative("eps", self.eps)
    }
}
