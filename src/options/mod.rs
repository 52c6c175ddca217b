//! Every formula's options: plain data whose field names are those of the specification, of the fixtures and of
//! `grpo-oracle eval`. There is no `Default`; the constructors are named after the source they follow.

mod advantage;
mod aggregate;
mod estimator;
mod filter;
mod gae;
mod group_ppo;
mod kl;
mod logprob;
mod loss;
mod mask;
mod metrics;
mod objective;
mod optim;
mod reward;
mod rollout;
mod sampling;
mod value;

pub use advantage::*;
pub use aggregate::*;
pub use estimator::*;
pub use filter::*;
pub use gae::*;
pub use group_ppo::*;
pub use kl::*;
pub use logprob::*;
pub use loss::*;
pub use mask::*;
pub use metrics::*;
pub use objective::*;
pub use optim::*;
pub use reward::*;
pub use rollout::*;
pub use sampling::*;
pub use value::*;

use crate::{Error, Result};

fn finite(option: &str, value: f64) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::option(option, format!("{value} is not finite"))) }
}

fn not_negative(option: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::option(option, format!("{value} is not a finite number of at least 0")))
}

fn positive(option: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::option(option, format!("{value} is not a finite number above 0")))
}

fn positive_or_null(option: &str, value: Option<f64>) -> Result<()> {
    value.map_or(Ok(()), |value| positive(option, value))
}

fn share(option: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::option(option, format!("{value} is not in [0, 1]")))
}
