//! Options of a whole loss: one of the objectives, the KL to the reference policy, the entropy bonus.

use serde::Serialize;

use super::{ActorLoss, Cispo, Clip, Gmpo, Gspo, Sapo};
use crate::Result;

/// What is made of the ratio and the advantage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The clipped ratio, with the bounds of [`LossOptions::terms`].
    Vanilla,
    /// No ratio: REINFORCE on the samples as they are.
    Gpg,
    /// The ratio of whole sequences.
    Gspo(Gspo),
    /// The clipped ratio as a constant weight.
    Cispo(Cispo),
    /// The geometric mean of a sequence's ratios; one loss a sequence, averaged over the sequences.
    GeoMean(Gmpo),
    /// A soft gate in the place of the clip.
    Sapo(Sapo),
}

/// A loss, whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossOptions {
    /// The policy term.
    pub objective: Objective,
    /// The other terms, the aggregation of all of them, and vanilla's bounds.
    pub terms: ActorLoss,
}

impl LossOptions {
    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        self.terms.check()?;
        match &self.objective {
            Objective::Vanilla | Objective::Gpg => Ok(()),
            Objective::Gspo(options) => options.check(),
            Objective::Cispo(options) => options.check(),
            Objective::GeoMean(options) => options.check(),
            Objective::Sapo(options) => options.check(),
        }
    }

    /// The bounds that the clip's figures are told by; of an objective without any, vanilla's.
    pub fn clip(&self) -> Clip {
        match &self.objective {
            Objective::Gspo(gspo) => gspo.clip(),
            _ => self.terms.clip,
        }
    }

    /// Whether the loss of a token depends on that token alone, given what it weighs in the whole: then a batch can be
    /// taken in any pieces. The others look at whole sequences.
    pub fn is_per_token(&self) -> bool {
        !matches!(self.objective, Objective::Gspo(_) | Objective::GeoMean(_))
    }
}
