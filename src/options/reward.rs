//! Options of `reward.*`.

use serde::{Deserialize, Serialize};

/// How the final answer is found in a response (clauses `reward.gsm8k.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GsmMethod {
    /// The number after the last `####` that a number follows.
    Strict,
    /// The last number of the response.
    Flexible,
}

/// Options of `reward.gsm8k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gsm8k {
    /// How the answer is found.
    pub method: GsmMethod,
}

impl Gsm8k {
    /// The marker `####` is required; the specification's default.
    pub fn strict() -> Self {
        Self { method: GsmMethod::Strict }
    }

    /// The last number counts.
    pub fn flexible() -> Self {
        Self { method: GsmMethod::Flexible }
    }
}
