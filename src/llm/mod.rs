//! Language models over libtorch.
