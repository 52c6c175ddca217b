//! Fast paths: second implementations of formulas that stand in [`crate::reference`] and [`crate::torch`], with the same
//! arguments, options and errors, without an autograd graph. They hand out the gradient with the value, and the caller
//! puts it into the graph of the model: `(logp * grad_logp).sum().backward()`. The oracle holds them to the reference
//! like the first, and whoever trains can do without them.
//!
//! * [`loss`]: a whole loss for given log-probabilities, in one pass over the tokens
//! * [`head`]: from hidden states to log-probabilities and gradients, without ever holding the logits
//! * [`optim`]: a step of AdamW in one pass over the parameters, and the clip of their gradients
//! * [`linear`]: maps without a gradient, laid out for many products
//! * [`objective`], [`metrics`] and [`logprob`]: their parts by the names that they have elsewhere
//!
//! On the CPU the losses and the optimiser are loops over the tensors' memory, on CUDA they and the head are kernels that
//! are compiled when they are first wanted ([`cuda`]). They share no arithmetic with the formulas that they are held
//! against.

pub mod cuda;
mod exp;
pub mod head;
pub mod linear;
pub mod logprob;
pub mod loss;
mod memory;
pub mod metrics;
pub mod objective;
pub mod optim;
mod rows;
mod sweep;
mod terms;
