//! Options of `value.*`.

use serde::{Deserialize, Serialize};

use super::{Aggregate, positive_or_null};
use crate::Result;

/// Options of `value.clipped`; in JSON all of them stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValueClip {
    /// The value is clipped to within this of the old one; above 0. `None` leaves it alone.
    pub cliprange_value: Option<f64>,
    /// Whether the squared error is halved.
    pub half: bool,
    /// How the tokens' losses are aggregated.
    #[serde(flatten)]
    pub aggregate: Aggregate,
}

impl ValueClip {
    /// verl 0.9.1: half the squared error, values within 0.5 of the old ones, token mean; the specification's default.
    pub fn verl() -> Self {
        Self { cliprange_value: Some(0.5), half: true, aggregate: Aggregate::dapo() }
    }

    /// TRL's PPO: as verl, within 0.2.
    pub fn trl() -> Self {
        Self { cliprange_value: Some(0.2), ..Self::verl() }
    }

    /// slime: within 0.2, the squared error not halved.
    pub fn slime() -> Self {
        Self { half: false, ..Self::trl() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the range or a count is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive_or_null("cliprange_value", self.cliprange_value)?;
        self.aggregate.check()
    }
}
