//! The formulas over libtorch, on any device: file by file and name by name the mirror of [`crate::reference`], sharing
//! none of its arithmetic.
//!
//! Vectorised over the batch; no host round trip inside a formula. Half-precision inputs are computed in single
//! precision and the outputs stay there. Ranks, sizes and kinds are checked first; values are not, because that would
//! wait for the device. Documentation of the formulas themselves stands with the reference.

pub mod advantage;
pub mod aggregate;
pub mod filter;
pub mod gae;
pub mod group_ppo;
pub mod kl;
pub mod logprob;
pub mod mask;
pub mod metrics;
pub mod objective;
pub mod optim;
pub mod reward;
pub mod rollout;
pub mod sampling;
pub mod value;

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// The tensor in single precision at least.
fn at_least_f32(tensor: &Tensor) -> Tensor {
    if tensor.kind() == Kind::Double { tensor.shallow_clone() } else { tensor.to_kind(Kind::Float) }
}

/// The tensor with 0 wherever the mask leaves an entry out: whatever stands there, NaN included, is never computed
/// with, and its gradient is 0.
fn select(tensor: &Tensor, mask: &Tensor) -> Tensor {
    tensor.masked_fill(&mask.logical_not(), 0.0)
}

/// The tensor is of the kind that the formula reads.
fn of_kind(argument: &str, tensor: &Tensor, wanted: Kind) -> Result<()> {
    if tensor.kind() == wanted {
        return Ok(());
    }
    Err(Error::input(argument, format!("is a tensor of {:?} where {wanted:?} is wanted", tensor.kind())))
}

/// Whether an entry is true, as far as one may look: on the CPU. Another device would have to be waited for, so there
/// the caller answers for the values and nothing is seen.
fn any_seen(entries: &Tensor) -> bool {
    entries.device() == Device::Cpu && entries.any().int64_value(&[]) != 0
}
