//! The rows of `rollout.*`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const ROLLOUT: &'static [Self] = &[];
}
