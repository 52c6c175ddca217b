//! Fast paths: second implementations of formulas that stand in [`crate::reference`] and [`crate::torch`], with the same
//! arguments, options and errors, in one pass and without an autograd graph. They hand out the gradient with the value,
//! and the caller puts it into the graph of the model: `(logp * grad_logp).sum().backward()`.
//!
//! * [`loss`]: a whole loss for given log-probabilities
//! * [`objective`] and [`metrics`]: its parts by the names that they have elsewhere, for whoever wants one alone
//!
//! On the CPU they are loops over the tensors' memory, on CUDA kernels that are compiled when they are first wanted
//! ([`cuda`]). They share no arithmetic with the formulas that they are held against.

pub mod cuda;
mod exp;
pub mod loss;
mod memory;
pub mod metrics;
pub mod objective;
mod rows;
mod sweep;
