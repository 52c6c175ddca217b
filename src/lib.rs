//! The executable specification of group-relative policy optimisation.
//!
//! Every formula stands once, in [`mod@reference`], generic over the scalar it is read with: `f64` gives the value,
//! [`reference::Dual`] the exact gradient, [`reference::Bounded`] the rounding error that an honest implementation may
//! have. [`formula`] is the table of all formulas, and [`evaluate`] asks it:
//!
//! ```
//! use grpo_oracle::evaluate::{Question, evaluate};
//! let question = serde_json::json!({
//!     "options": { "std": "none" },
//!     "inputs": { "rewards": [1, 0, 0, 0], "group": [0, 0, 0, 0] },
//! });
//! let answer = evaluate("advantage.group_norm", &Question::from_json("advantage.group_norm", &question)?)?;
//! assert_eq!(answer.outputs["advantages"].reals(), [0.75, -0.25, -0.25, -0.25]);
//! # Ok::<(), grpo_oracle::Error>(())
//! ```
//!
//! [`convention`] names the options with which frameworks and papers compute. [`fixture`] holds the golden cases,
//! [`conformance`] says how near is near enough, [`options`] what can be chosen, [`config`] what decides a run.
//! With the feature `torch` come the same formulas over libtorch (`torch`), fast paths of some (`fused`), a language
//! model (`llm`) and the trainer (`train`). `ARCHITECTURE.md` is the map; `spec/` says what each formula must do.

pub mod arguments;
pub mod axes;
pub mod config;
pub mod conformance;
pub mod convention;
pub mod error;
pub mod evaluate;
pub mod file;
pub mod fixture;
pub mod formula;
#[cfg(feature = "torch")]
pub mod fused;
#[cfg(feature = "torch")]
pub mod hub;
#[cfg(feature = "torch")]
pub mod llm;
pub mod options;
pub mod problem;
pub mod reference;
pub mod spec;
#[cfg(feature = "torch")]
pub mod torch;
#[cfg(feature = "torch")]
pub mod train;
pub mod value;
pub mod verl;

pub use error::{Error, Result};
