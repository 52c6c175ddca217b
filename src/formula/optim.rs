//! The rows of `optim.*`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const OPTIM: &'static [Self] = &[];
}
