//! Options of `reward.*`.

use serde::{Deserialize, Serialize};

use super::{finite, not_negative, positive};
use crate::{Error, Result};

/// How the final answer is found in a response (clauses `reward.gsm8k.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GsmMethod {
    /// The marker `####` is required.
    Strict,
    /// Any number will do.
    Flexible,
}

/// What of two answers is compared (clauses `reward.gsm8k.number` and `reward.gsm8k.text`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GsmCompare {
    /// Their values.
    Number,
    /// Their characters.
    Text,
}

/// Which of several answers counts (clause `reward.gsm8k.occurrence`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GsmOccurrence {
    /// The one that stands last.
    Last,
    /// The one that stands first.
    First,
}

/// Options of `reward.gsm8k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gsm8k {
    /// How the answer is found.
    pub method: GsmMethod,
    /// What is compared.
    pub compare: GsmCompare,
    /// Which answer of the response counts.
    pub occurrence: GsmOccurrence,
    /// Only so many characters at the response's end are searched; `None` searches all. At least 1.
    pub tail_chars: Option<usize>,
}

impl Gsm8k {
    /// The last marked number, compared as a number; the specification's default.
    pub fn strict() -> Self {
        Self {
            method: GsmMethod::Strict,
            compare: GsmCompare::Number,
            occurrence: GsmOccurrence::Last,
            tail_chars: None,
        }
    }

    /// The last number, compared as a number.
    pub fn flexible() -> Self {
        Self { method: GsmMethod::Flexible, ..Self::strict() }
    }

    /// verl 0.9.1's `strict`: the last marked text of the last 300 characters.
    pub fn verl_strict() -> Self {
        Self { compare: GsmCompare::Text, tail_chars: Some(300), ..Self::strict() }
    }

    /// verl 0.9.1's `flexible`: the last number of the last 300 characters, as text.
    pub fn verl_flexible() -> Self {
        Self { method: GsmMethod::Flexible, ..Self::verl_strict() }
    }

    /// The data set's own code: the first marked text.
    pub fn gsm() -> Self {
        Self { compare: GsmCompare::Text, occurrence: GsmOccurrence::First, ..Self::strict() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if no character is to be searched.
    pub fn check(&self) -> Result<()> {
        if self.tail_chars == Some(0) {
            return Err(Error::option("tail_chars", "0 leaves nothing to search; use null to search all"));
        }
        Ok(())
    }
}

/// Options of `reward.overlong`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overlong {
    /// The longest response that is allowed, in tokens; above 0.
    pub max_response_length: f64,
    /// Within so many tokens of it the penalty grows; above 0 and at most `max_response_length`.
    pub buffer: f64,
    /// The penalty at `max_response_length`; at least 0.
    pub penalty_factor: f64,
    /// The penalty is never below this, which is at most 0; `None` lets it grow.
    pub floor: Option<f64>,
}

impl Overlong {
    /// DAPO Eq. 13 with its lengths: from 0 at 16384 tokens to -1 at 20480, and no further; the specification's
    /// default.
    pub fn dapo() -> Self {
        Self { max_response_length: 20_480.0, buffer: 4_096.0, penalty_factor: 1.0, floor: Some(-1.0) }
    }

    /// verl 0.9.1 and NeMo-RL: the penalty grows without end.
    pub fn verl() -> Self {
        Self { floor: None, ..Self::dapo() }
    }

    /// OpenRLHF and EasyR1: the penalty stops at the factor.
    pub fn openrlhf(penalty_factor: f64) -> Self {
        Self { penalty_factor, floor: Some(-penalty_factor), ..Self::dapo() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        positive("max_response_length", self.max_response_length)?;
        positive("buffer", self.buffer)?;
        if self.buffer > self.max_response_length {
            let problem =
                format!("{} is above max_response_length, {}", self.buffer, self.max_response_length);
            return Err(Error::option("buffer", problem));
        }
        not_negative("penalty_factor", self.penalty_factor)?;
        let Some(floor) = self.floor else { return Ok(()) };
        finite("floor", floor)?;
        if floor > 0.0 {
            return Err(Error::option("floor", format!("{floor} is above 0, and a penalty never is")));
        }
        Ok(())
    }
}
