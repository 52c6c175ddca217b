//! Options of `metrics.*`.
