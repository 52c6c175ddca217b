//! Temporal-difference errors and generalised advantage estimation.
