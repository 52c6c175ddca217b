//! The formulas, each once, as plain functions over ndarray views, generic over the scalar that they are read with.
//!
//! Nothing here is fast and nothing here is clever: a function is right when a reader can lay it beside the paper.
//! Entries that a mask leaves out are never read, so whatever stands there (NaN included) reaches no output.

pub mod advantage;
pub mod aggregate;
mod bounded;
mod dual;
pub mod filter;
pub mod gae;
pub mod group_ppo;
pub mod kl;
pub mod logprob;
pub mod mask;
pub mod metrics;
pub mod objective;
pub mod optim;
mod real;
pub mod reward;
pub mod rollout;
pub mod sampling;
pub mod value;

pub use bounded::Bounded;
pub use dual::Dual;
pub use real::Real;
