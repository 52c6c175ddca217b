//! The rows of `advantage.group_ppo`.

use super::Formula;
use crate::reference::Real;

impl<R: Real> Formula<R> {
    pub(super) const GROUP_PPO: &'static [Self] = &[];
}
