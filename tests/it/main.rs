//! Ordinary tests of the package as a whole: the specification, the arrows between modules, laws of the formulas.

mod errata;
mod laws;
mod spec;
mod tidy;
