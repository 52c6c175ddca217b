//! Ordinary tests: the language model, the command line, the layout.

#[cfg(feature = "torch")]
mod llm;
#[cfg(feature = "torch")]
mod train;
