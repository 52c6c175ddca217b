//! Options of `optim.*`.
