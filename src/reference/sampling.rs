//! What is sampled, and which samples are kept.
