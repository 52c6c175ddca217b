//! The one error type. Messages are one sentence: what is wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

/// What every fallible function of the crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can be wrong with what a caller hands in. [`Error::code`] is the stable part.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array has another number of axes than the formula's.
    #[error(
        "`{argument}` has the wrong number of axes, {got} instead of {expected}; give it the shape {shape}"
    )]
    Rank {
        /// The argument's name.
        argument: String,
        /// How many axes the formula wants.
        expected: usize,
        /// How many the caller's array has.
        got: usize,
        /// The wanted shape, as its axes are named in the specification.
        shape: String,
    },
    /// An axis is of another length than the same axis of an earlier argument.
    #[error(
        "`{argument}` has {got} entries along {axis} where {expected} are needed, as in the arguments before it"
    )]
    Shape {
        /// The argument's name.
        argument: String,
        /// The axis, as named in the specification.
        axis: String,
        /// The length that an earlier argument fixed.
        expected: usize,
        /// The length of this argument's axis.
        got: usize,
    },
    /// An entry that the formula reads is NaN or infinite.
    #[error("`{argument}`[{index}] is {value}; entries that the mask keeps must be finite")]
    NonFinite {
        /// The argument's name.
        argument: String,
        /// Row-major position of the first such entry.
        index: usize,
        /// The entry as text.
        value: String,
    },
    /// An index, such as a token id, is out of its range.
    #[error("`{argument}`[{index}] is {got}; it must be at least 0 and below {limit}")]
    Index {
        /// The argument's name.
        argument: String,
        /// Row-major position of the first such entry.
        index: usize,
        /// The entry.
        got: i64,
        /// The first value past the range.
        limit: usize,
    },
    /// A group has too few members for the formula with these options.
    #[error("group {group} has {size} member(s); {need}")]
    GroupSize {
        /// The group's label.
        group: i64,
        /// Its number of members.
        size: usize,
        /// What the option asks for, and the way out.
        need: &'static str,
    },
    /// A mask keeps too few entries for the formula with these options.
    #[error("`{argument}` keeps {kept} entries where at least {need} are needed")]
    TooFew {
        /// The mask's name.
        argument: String,
        /// How many it keeps.
        kept: usize,
        /// How many the formula needs.
        need: usize,
    },
    /// An option is unknown, of the wrong type, or out of its domain.
    #[error("option `{option}`: {problem}")]
    Option {
        /// The option's name.
        option: String,
        /// What is wrong with it and what is allowed.
        problem: String,
    },
    /// A named input is missing, unknown, or not of the kind that the formula reads.
    #[error("input `{input}`: {problem}")]
    Input {
        /// The input's name.
        input: String,
        /// What is wrong with it and what is wanted.
        problem: String,
    },
    /// No formula has this id.
    #[error("there is no formula `{id}`; {hint}")]
    UnknownFormula {
        /// The id asked for.
        id: String,
        /// The nearest id, or how to list them.
        hint: String,
    },
    /// The pieces are each right but do not go together.
    #[error("{what}")]
    Unsupported {
        /// Which combination, and what to use instead.
        what: String,
    },
    /// An adapter cannot be started, or does not speak the protocol.
    #[error("`{command}`: {problem}")]
    Adapter {
        /// Its command line.
        command: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read, written or understood.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it (with the line or key where there is one) and what to do.
        problem: String,
    },
}

impl Error {
    /// The stable name of the kind of error; fixtures and adapters compare by it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rank { .. } => "rank",
            Self::Shape { .. } => "shape",
            Self::NonFinite { .. } => "non-finite",
            Self::Index { .. } => "index",
            Self::GroupSize { .. } => "group-size",
            Self::TooFew { .. } => "too-few",
            Self::Option { .. } => "option",
            Self::Input { .. } => "input",
            Self::UnknownFormula { .. } => "unknown-formula",
            Self::Unsupported { .. } => "unsupported",
            Self::Adapter { .. } => "adapter",
            Self::File { .. } => "file",
        }
    }

    /// An option that is out of its domain.
    pub fn option(option: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Option { option: option.into(), problem: problem.into() }
    }

    /// An input that is missing, unknown or of the wrong kind.
    pub fn input(input: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Input { input: input.into(), problem: problem.into() }
    }

    /// A file that cannot be used.
    pub fn file(path: impl AsRef<Path>, problem: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_owned(), problem: problem.to_string() }
    }
}
