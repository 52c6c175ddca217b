//! Options of `advantage.group_ppo`.
