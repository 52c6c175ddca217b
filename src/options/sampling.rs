//! Options of `sampling.*`.
