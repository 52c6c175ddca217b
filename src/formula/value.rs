//! The rows of `value.*`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const VALUE: &'static [Self] = &[];
}
