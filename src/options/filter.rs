//! Options of `advantage.filter`.
