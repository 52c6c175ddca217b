//! The rows of `advantage.td_error` and `advantage.gae`.

use ndarray::Ix2;

use super::advantage::{WHITEN, WHITEN_DDOF, WHITEN_EPS, WHITEN_EPS_MODE};
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::{Gae, TdError};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const GAE: &'static [Self] = &[
        Self {
            id: "advantage.td_error",
            summary: "delta_t = r_t + gamma V_next - V_t",
            source: "GAE (arXiv 1506.02438) section 3; verl, OpenRLHF, TRL",
            clauses: &["mask.select", "gae.td-error", "gae.mask-mode", "gae.stop"],
            inputs: INPUTS,
            options: &[GAMMA, MASK_MODE],
            defaults: || fields(&TdError::verl()),
            outputs: &[Output::new("td_error", &["B", "T"])],
            rivals: &[
                Rival::new("masked slots as steps of value 0", r#"{"mask_mode": "none"}"#),
                Rival::new("masked slots passed over", r#"{"mask_mode": "carry"}"#),
                Rival::new("no discount", r#"{"gamma": 1.0}"#),
                Rival::new("the next value left out", r#"{"gamma": 0.0}"#),
            ],
            reference: td_error,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::td_error),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.gae",
            summary: "A_t = delta_t + gamma lam A_next;  returns_t = A_t + V_t;  A whitened over the batch if asked for",
            source: "GAE (arXiv 1506.02438) Eq. 16; PPO Eq. 11; verl, OpenRLHF, TRL",
            clauses: &[
                "mask.select",
                "gae.td-error",
                "gae.advantage",
                "gae.returns",
                "gae.mask-mode",
                "gae.stop",
                "gae.whiten",
                "gae.whiten-few",
            ],
            inputs: INPUTS,
            options: &[
                GAMMA,
                MASK_MODE,
                OptionField::new("lam", "in [0, 1]", "[1.0, 0.95, 0.0]", "the decay of later differences"),
                WHITEN,
                WHITEN_DDOF,
                WHITEN_EPS,
                WHITEN_EPS_MODE,
            ],
            defaults: || fields(&Gae::eq16(1.0, 1.0)),
            outputs: &[Output::new("advantages", &["B", "T"]), Output::new("returns", &["B", "T"])],
            rivals: &[
                Rival::new("masked slots as steps of value 0", r#"{"mask_mode": "none"}"#),
                Rival::new("masked slots passed over", r#"{"mask_mode": "carry"}"#),
                Rival::new("no discount", r#"{"gamma": 1.0}"#),
                Rival::new("lambda 1", r#"{"lam": 1.0}"#),
                Rival::new("lambda 0.95", r#"{"lam": 0.95}"#),
                Rival::new("not whitened", r#"{"whiten": false}"#),
                Rival::new("whitened without being asked", r#"{"whiten": true}"#),
                Rival::new("whitened by the population variance", r#"{"whiten_ddof": 0}"#),
                Rival::new("whitened with a clamped variance", r#"{"whiten_eps_mode": "clamp"}"#),
            ],
            reference: gae,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::gae),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const INPUTS: &[Input] = &[
    Input::data("rewards", Kind::Real, &["B", "T"], Role::Number),
    Input::constant("values", &["B", "T"], Role::Number),
    Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
];

const GAMMA: OptionField =
    OptionField::new("gamma", "in [0, 1]", "[1.0, 0.99, 0.5, 0.0]", "the discount of the next value");
const MASK_MODE: OptionField = OptionField::new(
    "mask_mode",
    "carry, none",
    r#"["carry", "none"]"#,
    "a masked slot is passed over, or is a step with reward 0 and value 0",
);

fn td_error<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, values) = (args.real::<Ix2>("rewards")?, args.real::<Ix2>("values")?);
    let mask = args.mask::<Ix2>("response_mask")?;
    let td_error = reference::gae::td_error(&rewards, &values, &mask, &args.options()?)?;
    Ok(vec![("td_error", td_error.into_dyn())])
}

fn gae<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, values) = (args.real::<Ix2>("rewards")?, args.real::<Ix2>("values")?);
    let mask = args.mask::<Ix2>("response_mask")?;
    let output = reference::gae::gae(&rewards, &values, &mask, &args.options()?)?;
    Ok(vec![("advantages", output.advantages.into_dyn()), ("returns", output.returns.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn td_error(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, values) = (args.tensor("rewards")?, args.tensor("values")?);
        let mask = args.tensor("response_mask")?;
        Ok(vec![("td_error", torch::gae::td_error(rewards, values, mask, &args.options()?)?)])
    }

    pub(super) fn gae(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, values) = (args.tensor("rewards")?, args.tensor("values")?);
        let output = torch::gae::gae(rewards, values, args.tensor("response_mask")?, &args.options()?)?;
        Ok(vec![("advantages", output.advantages), ("returns", output.returns)])
    }
}
