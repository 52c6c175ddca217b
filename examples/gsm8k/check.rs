//! The first step's loss, computed again by the ndarray reference from the very numbers that libtorch saw.

use grpo_oracle::conformance::{Dtype, worst};
use grpo_oracle::options::{LossOptions, MaskedMean, Objective};
use grpo_oracle::reference::{Bounded, Dual, Real, aggregate, mask, objective};
use grpo_oracle::train::loss::{self, LossInputs};
use grpo_oracle::train::step::LossRecord;
use grpo_oracle::{Error, Result};
use ndarray::{Array2, Axis, Ix1};
use tch::{Kind, Tensor};

/// The gradient costs the reference one pass over the batch for every token; above this many it is left out.
const GRADIENT_LIMIT: usize = 4096;

/// Says how nearly the loss that was trained on, and its gradient by the log-probabilities, agree with the reference.
///
/// # Errors
/// `unsupported` if they are further apart than rounding explains.
pub(crate) fn against_reference(record: &LossRecord) -> Result<String> {
    let dtype = if record.inputs.logp.kind() == Kind::Double { Dtype::F64 } else { Dtype::F32 };
    let inputs = Numbers::of(&record.inputs)?;
    let loss = inputs.loss(&record.options, Bounded::exact, Bounded::exact)?;
    let off = worst(&[loss.value], &[loss.error], &[record.loss], dtype);
    let loss_excess = off.map_or(0.0, |off| off.excess);
    let mut said = format!(
        "checked: the first micro-batch's loss is {:+.6e} by libtorch and {:+.6e} by the reference ({loss_excess:.2} of the \
         allowed rounding)",
        record.loss, loss.value
    );
    let mut gradient_excess = 0.0;
    if inputs.logp.len() <= GRADIENT_LIMIT {
        let right = inputs.gradient(&record.options)?;
        let split: (Vec<f64>, Vec<f64>) = right.iter().map(|entry| (entry.value, entry.error)).unzip();
        let got = numbers(&record.grad_logp);
        gradient_excess = worst(&split.0, &split.1, &got, dtype).map_or(0.0, |off| off.excess);
        said += &format!("; its gradient agrees at all {} tokens ({gradient_excess:.2})", right.len());
    }
    if loss_excess.max(gradient_excess) > 1.0 {
        return Err(Error::Unsupported { what: format!("libtorch and the reference disagree: {said}") });
    }
    Ok(said)
}

/// The inputs of a loss outside libtorch.
struct Numbers {
    logp: Array2<f64>,
    logp_old: Array2<f64>,
    logp_ref: Option<Array2<f64>>,
    advantages: Array2<f64>,
    mask: Array2<bool>,
    entropy: Option<Array2<f64>>,
}

impl Numbers {
    fn of(inputs: &LossInputs) -> Result<Self> {
        let maybe = |tensor: &Option<Tensor>| tensor.as_ref().map(array).transpose();
        Ok(Self {
            logp: array(&inputs.logp)?,
            logp_old: array(&inputs.logp_old)?,
            logp_ref: maybe(&inputs.logp_ref)?,
            advantages: array(&inputs.advantages)?,
            mask: array(&inputs.mask)?.mapv(|kept| kept != 0.0),
            entropy: maybe(&inputs.entropy)?,
        })
    }

    /// The loss by the reference's own formulas, put together as [`loss::loss`] does. `seeded` reads the
    /// log-probabilities, one by one in reading order, and `plain` everything else.
    fn loss<R: Real>(
        &self,
        options: &LossOptions,
        seeded: impl FnMut(f64) -> R,
        plain: impl Fn(f64) -> R,
    ) -> Result<R> {
        let read = |array: &Array2<f64>| array.mapv(&plain);
        let (logp, logp_old, advantages) =
            (self.logp.mapv(seeded), read(&self.logp_old), read(&self.advantages));
        let (logp_ref, entropy) = (self.logp_ref.as_ref().map(read), self.entropy.as_ref().map(read));
        let mask = &self.mask;
        let actor_loss = |advantages: &Array2<R>| {
            let (logp_ref, entropy) = (logp_ref.as_deref(), entropy.as_deref());
            objective::actor_loss(&logp, &logp_old, logp_ref, advantages, mask, None, entropy, &options.terms)
        };
        let of_tokens = |losses: Array2<R>| aggregate::loss(&losses, mask, &options.terms.aggregate);
        let policy_loss = match &options.objective {
            Objective::Vanilla => return Ok(actor_loss(&advantages)?.loss),
            Objective::Gpg => of_tokens(objective::policy_gradient(&logp, &advantages)?)?,
            Objective::Gspo(gspo) => {
                of_tokens(objective::gspo(&logp, &logp_old, &advantages, mask, gspo)?.loss)?
            }
            Objective::Cispo(cispo) => {
                of_tokens(objective::cispo(&logp, &logp_old, &advantages, mask, cispo)?)?
            }
            Objective::Sapo(sapo) => of_tokens(objective::sapo(&logp, &logp_old, &advantages, mask, sapo)?)?,
            Objective::GeoMean(gmpo) => {
                let along = MaskedMean::along(1);
                let of_rows = mask::mean(&advantages.view().into_dyn(), &mask.view().into_dyn(), &along)?;
                let of_rows = of_rows
                    .into_dimensionality::<Ix1>()
                    .map_err(|e| Error::input("advantages", e.to_string()))?;
                let losses = objective::gmpo(&logp, &logp_old, &of_rows, mask, gmpo)?;
                let rows = mask.map_axis(Axis(1), |row| row.iter().any(|&kept| kept)).insert_axis(Axis(1));
                aggregate::loss(
                    &losses.insert_axis(Axis(1)),
                    &rows,
                    &loss::over_rows(&options.terms.aggregate),
                )?
            }
        };
        let own = policy_loss / R::constant(options.terms.gradient_accumulation_steps);
        if options.terms.kl_loss_coef == 0.0 && options.terms.entropy_coeff == 0.0 {
            return Ok(own);
        }
        Ok(own + actor_loss(&advantages.mapv(|_| plain(0.0)))?.loss)
    }

    /// The gradient by every log-probability, with the reference's bounds: one pass for each.
    fn gradient(&self, options: &LossOptions) -> Result<Vec<Bounded>> {
        (0..self.logp.len())
            .map(|wanted| {
                let mut place = 0;
                let seeded = |value: f64| {
                    place += 1;
                    let seed = f64::from(u8::from(place == wanted + 1));
                    Dual::variable(Bounded::exact(value), Bounded::constant(seed))
                };
                let plain = |value: f64| Dual::variable(Bounded::exact(value), Bounded::constant(0.0));
                Ok(self.loss(options, seeded, plain)?.tangent)
            })
            .collect()
    }
}

fn array(tensor: &Tensor) -> Result<Array2<f64>> {
    let (rows, columns) = tensor.size2().map_err(|error| Error::input("loss", error.to_string()))?;
    let shape = (rows as usize, columns as usize);
    Array2::from_shape_vec(shape, numbers(tensor)).map_err(|error| Error::input("loss", error.to_string()))
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Double).reshape([-1]);
    Vec::try_from(flat).unwrap_or_default()
}
