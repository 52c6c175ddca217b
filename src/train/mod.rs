//! Training a language model on GSM8K: problems, prompts, rollouts, the optimisation step, evaluation, and the record
//! of a run. `examples/gsm8k/main.rs` is the loop over these pieces.

pub mod algorithm;
pub mod builtin;
pub mod checkpoint;
pub mod config;
pub mod critic;
pub mod curves;
pub mod data;
pub mod evaluate;
pub mod experience;
pub mod head;
pub mod health;
pub mod hub;
mod lines;
pub mod loss;
pub mod optim;
pub mod page;
pub mod progress;
pub mod prompt;
pub mod report;
pub mod rollout;
pub mod score;
pub mod sft;
pub mod step;
pub mod tensorboard;
pub mod tiny;
