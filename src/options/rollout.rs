//! Options of `rollout.*`.
