//! Options of `advantage.gae`.
