//! The rows of `advantage.gae`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const GAE: &'static [Self] = &[];
}
