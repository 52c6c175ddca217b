//! The rows of `advantage.filter`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const FILTER: &'static [Self] = &[];
}
