//! The optimiser step.
