//! The first step's loss, computed again by the ndarray reference from the very numbers that libtorch saw.

use grpo_oracle::conformance::{Dtype, worst};
use grpo_oracle::evaluate::{Question, evaluate_torch, gradient, read};
use grpo_oracle::reference::Bounded;
use grpo_oracle::train::step::LossRecord;
use grpo_oracle::value::{Array, Data, Named};
use grpo_oracle::{Error, Result};
use serde_json::Value;
use tch::{Kind, Tensor};

const FORMULA: &str = "objective.actor_loss";

/// The gradient costs the reference one pass over the batch for every token; above this many it is left out.
const GRADIENT_LIMIT: usize = 4096;

/// Says how nearly the loss that was trained on, and its gradient by the log-probabilities, agree with the reference.
///
/// # Errors
/// `unsupported` if they are further apart than rounding explains.
pub(crate) fn against_reference(record: &LossRecord) -> Result<String> {
    let question = question(record);
    let outputs = read(FORMULA, &question, Bounded::exact)?;
    let loss =
        outputs.first().and_then(|(_, loss)| loss.first().copied()).unwrap_or(Bounded::exact(f64::NAN));
    let dtype = if record.logp.kind() == Kind::Double { Dtype::F64 } else { Dtype::F32 };
    let off = worst(&[loss.value], &[loss.error], &[record.loss], dtype);
    let loss_excess = off.map_or(0.0, |off| off.excess);
    let mut said = format!(
        "step 1's loss is {:+.6e} by libtorch and {:+.6e} by the reference ({loss_excess:.2} of the allowed rounding)",
        record.loss, loss.value
    );
    let mut gradient_excess = 0.0;
    if record.logp.numel() <= GRADIENT_LIMIT {
        let right = gradient(FORMULA, &question, "logp", Bounded::exact)?;
        let got =
            &evaluate_torch(FORMULA, &question, record.logp.device(), record.logp.kind())?.gradients["logp"];
        let split: (Vec<f64>, Vec<f64>) = right.iter().map(|entry| (entry.value, entry.error)).unzip();
        gradient_excess = worst(&split.0, &split.1, &numbers(got), dtype).map_or(0.0, |off| off.excess);
        said += &format!("; its gradient agrees at all {} tokens ({gradient_excess:.2})", right.len());
    }
    if loss_excess.max(gradient_excess) > 1.0 {
        return Err(Error::Unsupported { what: format!("libtorch and the reference disagree: {said}") });
    }
    Ok(said)
}

fn question(record: &LossRecord) -> Question {
    let options = match serde_json::to_value(record.options) {
        Ok(Value::Object(options)) => options,
        _ => serde_json::Map::new(),
    };
    let mut inputs = Named::new();
    let mut insert = |name: &str, tensor: &Tensor| inputs.insert(name.to_owned(), array(tensor));
    insert("logp", &record.logp);
    insert("logp_old", &record.logp_old);
    insert("advantages", &record.advantages);
    insert("response_mask", &record.response_mask);
    record.logp_ref.iter().for_each(|logp_ref| drop(insert("logp_ref", logp_ref)));
    record.entropy.iter().for_each(|entropy| drop(insert("entropy", entropy)));
    Question { options, inputs }
}

fn array(tensor: &Tensor) -> Array {
    let shape = tensor.size().iter().map(|&axis| axis as usize).collect();
    let numbers = numbers(tensor);
    let is_mask = tensor.kind() == Kind::Bool;
    let data =
        if is_mask { Data::Mask(numbers.iter().map(|&n| n != 0.0).collect()) } else { Data::Real(numbers) };
    Array { shape, data }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Double).reshape([-1]);
    Vec::try_from(flat).unwrap_or_default()
}
