//! Options of `advantage.td_error` and `advantage.gae`.

use serde::{Deserialize, Serialize};

use super::{Whiten, WhitenAdvantages, share};
use crate::Result;

/// What a masked slot between kept tokens does to the recursion (clause `gae.mask-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GaeMaskMode {
    /// It is passed over: the next kept token follows directly.
    Carry,
    /// It is a step like any other, with reward 0 and value 0.
    None,
}

/// Options of `advantage.td_error`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TdError {
    /// The discount of the next value; in [0, 1].
    pub gamma: f64,
    /// What a masked slot does.
    pub mask_mode: GaeMaskMode,
}

impl TdError {
    /// verl since 0.5: no discount, masked slots passed over; the specification's default.
    pub fn verl() -> Self {
        Self { gamma: 1.0, mask_mode: GaeMaskMode::Carry }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if gamma is outside [0, 1].
    pub fn check(&self) -> Result<()> {
        share("gamma", self.gamma)
    }
}

/// Options of `advantage.gae`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gae {
    /// The temporal differences.
    #[serde(flatten)]
    pub td_error: TdError,
    /// The decay of later differences; in [0, 1].
    pub lam: f64,
    /// The whitening over the batch's kept tokens, after the returns are taken.
    #[serde(flatten)]
    pub whiten: WhitenAdvantages,
}

impl Gae {
    /// GAE alone (arXiv 1506.02438, Eq. 16), without whitening; at (1, 1) the specification's default.
    pub fn eq16(gamma: f64, lam: f64) -> Self {
        Self { td_error: TdError { gamma, ..TdError::verl() }, lam, whiten: WhitenAdvantages::off() }
    }

    /// verl since 0.5: gamma and lambda 1, whitened with divisor n - 1.
    pub fn verl() -> Self {
        Self { td_error: TdError::verl(), lam: 1.0, whiten: WhitenAdvantages::with(&Whiten::verl()) }
    }

    /// OpenRLHF 0.11: masked slots are steps, whitened with divisor n and a variance of at least 1e-8.
    pub fn openrlhf() -> Self {
        Self {
            td_error: TdError { mask_mode: GaeMaskMode::None, ..TdError::verl() },
            whiten: WhitenAdvantages::with(&Whiten::openrlhf()),
            ..Self::verl()
        }
    }

    /// TRL's PPO: masked slots are steps, lambda 0.95, whitened as by verl.
    pub fn trl() -> Self {
        Self { lam: 0.95, td_error: Self::openrlhf().td_error, ..Self::verl() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if any of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        self.td_error.check()?;
        share("lam", self.lam)?;
        self.whiten.check()
    }
}
