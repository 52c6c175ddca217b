//! What is held against the reference: the reference itself in single precision, libtorch on every device, and the fast
//! paths.

use grpo_oracle::Result;
use grpo_oracle::conformance::{Dtype, compare};
use grpo_oracle::evaluate::{Evaluation, Question, differentiable, gradient, read};
#[cfg(feature = "torch")]
use grpo_oracle::evaluate::{TorchAnswer, evaluate_fused, evaluate_torch};
use grpo_oracle::formula::Formula;

/// An implementation in one format on one device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Backend {
    /// The reference read with `f32`.
    Reference,
    /// libtorch; real inputs are of this format.
    #[cfg(feature = "torch")]
    Torch(tch::Device, Dtype),
    /// The fast paths, where there are any; real inputs are of this format.
    #[cfg(feature = "torch")]
    Fused(tch::Device, Dtype),
}

/// The formulas whose fast path runs on CUDA devices too.
#[cfg(feature = "torch")]
const FUSED_ON_CUDA: [&str; 5] =
    ["objective.actor_loss", "logprob.token", "logprob.entropy", "optim.adamw", "optim.clip_grad_norm"];

/// An answer: name (`grad:` before an input's), values, and the format that they come in.
pub(crate) type Answer = Vec<(String, Vec<f64>, Dtype)>;

impl Backend {
    /// Every backend of this build on this machine.
    pub(crate) fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "grows with the torch feature")]
        let mut backends = vec![Self::Reference];
        #[cfg(feature = "torch")]
        {
            let cuda = (0..tch::Cuda::device_count() as usize).map(tch::Device::Cuda);
            let devices: Vec<tch::Device> = std::iter::once(tch::Device::Cpu).chain(cuda).collect();
            let on = |device: &tch::Device| Dtype::ALL.map(|dtype| Self::Torch(*device, dtype));
            backends.extend(devices.iter().flat_map(on));
            let fused =
                |device: &tch::Device| [Dtype::F64, Dtype::F32].map(|dtype| Self::Fused(*device, dtype));
            backends.extend(devices.iter().flat_map(fused));
        }
        backends
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Reference => "reference-f32".to_owned(),
            #[cfg(feature = "torch")]
            Self::Torch(tch::Device::Cuda(index), dtype) => format!("cuda{index}-{}", dtype.name()),
            #[cfg(feature = "torch")]
            Self::Torch(_, dtype) => format!("cpu-{}", dtype.name()),
            #[cfg(feature = "torch")]
            Self::Fused(tch::Device::Cuda(index), dtype) => format!("fused-cuda{index}-{}", dtype.name()),
            #[cfg(feature = "torch")]
            Self::Fused(_, dtype) => format!("fused-cpu-{}", dtype.name()),
        }
    }

    pub(crate) fn is_cuda(&self) -> bool {
        match self {
            Self::Reference => false,
            #[cfg(feature = "torch")]
            Self::Torch(device, _) | Self::Fused(device, _) => device.is_cuda(),
        }
    }

    /// Whether it is asked every question of small domains: libtorch, in the formats that it computes in.
    pub(crate) fn is_exhausted(&self) -> bool {
        match self {
            Self::Reference => false,
            #[cfg(feature = "torch")]
            Self::Torch(_, dtype) | Self::Fused(_, dtype) => *dtype != Dtype::Bf16,
        }
    }

    /// The format of the inputs.
    pub(crate) fn input_dtype(&self) -> Dtype {
        match self {
            Self::Reference => Dtype::F32,
            #[cfg(feature = "torch")]
            Self::Torch(_, dtype) | Self::Fused(_, dtype) => *dtype,
        }
    }

    /// Whether the backend implements the formula.
    #[cfg_attr(not(feature = "torch"), expect(unused_variables, reason = "the reference has them all"))]
    pub(crate) fn has(&self, formula: &Formula<f64>) -> bool {
        match self {
            Self::Reference => true,
            #[cfg(feature = "torch")]
            Self::Torch(..) => formula.torch.is_some(),
            #[cfg(feature = "torch")]
            Self::Fused(device, _) => {
                formula.fused.is_some() && (!device.is_cuda() || FUSED_ON_CUDA.contains(&formula.id))
            }
        }
    }

    /// The format that the formula is computed in, by which branches are decided.
    pub(crate) fn compute_dtype(&self) -> Dtype {
        if self.input_dtype() == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }
    }

    /// The backend's answer.
    pub(crate) fn answer(&self, id: &str, question: &Question) -> Result<Answer> {
        match self {
            Self::Reference => {
                let single = |value: f64| value as f32;
                let values =
                    |array: &ndarray::ArrayD<f32>| array.iter().map(|&value| f64::from(value)).collect();
                let outputs = read(id, question, single)?;
                let outputs =
                    outputs.iter().map(|(name, array)| ((*name).to_owned(), values(array), Dtype::F32));
                let mut answer: Answer = outputs.collect();
                for input in differentiable(Formula::<f64>::find(id)?, question) {
                    let gradient = gradient(id, question, input, single)?;
                    answer.push((format!("grad:{input}"), values(&gradient), Dtype::F32));
                }
                Ok(answer)
            }
            #[cfg(feature = "torch")]
            Self::Torch(device, dtype) => arrays(evaluate_torch(id, question, *device, dtype.kind())?),
            #[cfg(feature = "torch")]
            Self::Fused(device, dtype) => arrays(evaluate_fused(id, question, *device, dtype.kind())?),
        }
    }
}

/// Holds an answer against the reference's, within the derived tolerance.
pub(crate) fn judge(expected: &Evaluation, answer: &Answer) -> Result<(), String> {
    if let Some(missing) =
        expected.bounds.keys().find(|name| !answer.iter().any(|(answered, ..)| answered == *name))
    {
        return Err(format!("`{missing}` is missing from the answer"));
    }
    for (name, got, dtype) in answer {
        let right = match name.strip_prefix("grad:") {
            Some(input) => expected.gradients.get(input),
            None => expected.outputs.get(name),
        };
        let right = right.ok_or_else(|| format!("`{name}` is answered but not expected"))?;
        compare(right.reals(), expected.bounds[name].reals(), got, *dtype)
            .map_err(|worst| format!("`{name}` in {}: {worst}", dtype.name()))?;
    }
    Ok(())
}

#[cfg(feature = "torch")]
fn arrays(answer: TorchAnswer) -> Result<Answer> {
    let arrays = answer.arrays()?.into_iter().map(|(name, array, kind)| {
        let dtype = Dtype::ALL.into_iter().find(|dtype| dtype.kind() == kind);
        (name, array.reals().to_vec(), dtype.unwrap())
    });
    Ok(arrays.collect())
}
