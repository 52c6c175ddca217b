//! The rows of `sampling.*`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const SAMPLING: &'static [Self] = &[];
}
