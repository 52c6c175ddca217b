//! Options of `value.*`.
