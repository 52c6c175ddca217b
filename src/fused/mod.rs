//! Second implementations of formulas that [`crate::torch`] has already, made for speed and memory: the same arguments
//! in the same order, the same options, the same errors. The oracle holds them to the reference like the first, and
//! whoever trains can do without them.

pub mod head;
pub mod logprob;
