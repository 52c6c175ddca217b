//! Training a language model on GSM8K: problems, prompts, rollouts, the optimisation step, evaluation, and the record
//! of a run. `examples/gsm8k/main.rs` is the loop over these pieces.

pub mod algorithm;
pub mod builtin;
pub mod checkpoint;
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
mod micro_batch;
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

/// The seed of one of several draws, such as a step's: drawn from the run's, so that seeds next to each other share none.
fn seed_of(seed: u64, draw: u64) -> u64 {
    seed.wrapping_mul(1_000_003).wrapping_add(draw)
}
