//! The row of `advantage.group_ppo`.

use ndarray::Ix2;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::GroupPpo;
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const GROUP_PPO: &'static [Self] = &[Self {
        id: "advantage.group_ppo",
        summary: "close a run at its n-th token if r_ppo > gate and n (r_ppo + eps) >= threshold r_grpo;  A = return - V there, 0 elsewhere",
        source: "001_group_ppo.md and the code behind it",
        clauses: &[
            "mask.select",
            "group-ppo.close",
            "group-ppo.score",
            "group-ppo.same-score",
            "group-ppo.size",
            "group-ppo.counter",
            "group-ppo.estimate",
            "group-ppo.advantage",
            "group-ppo.return",
            "group-ppo.masked",
            "group-ppo.threshold",
            "group-ppo.metrics",
            "group-ppo.sparse",
            "group-ppo.published",
        ],
        inputs: &[
            Input::data("rewards", Kind::Real, &["B", "T"], Role::Reward),
            Input::data("values", Kind::Real, &["B", "T"], Role::Number),
            Input::data("logp", Kind::Real, &["B", "T"], Role::Logp),
            Input::data("logp_old", Kind::Real, &["B", "T"], Role::LogpOther),
            Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
        ],
        options: OPTIONS,
        defaults: || fields(&GroupPpo::algorithm2()),
        outputs: &[
            Output::new("endpoints", &["B", "T"]),
            Output::new("advantages", &["B", "T"]),
            Output::new("returns", &["B", "T"]),
            Output::new("threshold", &[]),
            Output::new("compression_ratio", &[]),
            Output::new("efficiency_gain", &[]),
            Output::new("algorithm_effectiveness", &[]),
            Output::new("total_endpoints", &[]),
            Output::new("sparse", &[]),
        ],
        rivals: &[
            Rival::new("the threshold is not read", r#"{"group_variance_threshold": 1.0}"#),
            Rival::new("no largest size", r#"{"group_max_size": null}"#),
            Rival::new("the threshold does not move", r#"{"adaptive_threshold": false}"#),
            Rival::new("tokens counted from the response's start", r#"{"group_counter": "sequence"}"#),
            Rival::new("sizes from the ratio", r#"{"group_g": "ratio_minus_one"}"#),
            Rival::new("the rewards of the whole prefix", r#"{"endpoint_return": "prefix"}"#),
            Rival::new("no eps beside the PPO score", r#"{"group_epsilon": 0.0}"#),
            Rival::new(
                "the published code",
                r#"{"group_max_size": null, "group_epsilon": 0.0, "adaptive_threshold": false, "group_score": "gp2", "group_g": "ratio_minus_one", "group_counter": "sequence", "group_variance_threshold": 1.0, "endpoint_return": "prefix"}"#,
            ),
        ],
        reference: group_ppo,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::group_ppo),
        #[cfg(feature = "torch")]
        fused: None,
    }];
}

const OPTIONS: &[OptionField] = &[
    OptionField::new(
        "group_variance_threshold",
        "above 0",
        "[1.0, 0.25, 3.0]",
        "the weight of the group score in the comparison",
    ),
    OptionField::new(
        "group_max_size",
        "null or at least 2",
        "[16, 2, 3, null]",
        "a run closes at this many tokens whatever its scores are",
    ),
    OptionField::new("group_epsilon", "at least 0", "[1e-6, 0.0, 0.5]", "is added to the PPO score"),
    OptionField::new(
        "adaptive_threshold",
        "true, false",
        "[true, false]",
        "whether the threshold moves after the batch",
    ),
    OptionField::new(
        "threshold_lr",
        "in [0, 1]",
        "[0.01, 1.0, 0.0]",
        "how far it moves towards the mean quotient of the scores",
    ),
    OptionField::new("min_threshold", "above 0", "[0.1, 0.5]", "it does not move below this"),
    OptionField::new("max_threshold", "at least min_threshold", "[10.0, 0.5]", "it does not move above this"),
    OptionField::new(
        "group_score",
        "paper, gp2",
        r#"["paper", "gp2"]"#,
        "squares of sums over the run (Algorithm 2), or the published code's",
    ),
    OptionField::new(
        "group_g",
        "log_ratio, ratio_minus_one",
        r#"["log_ratio", "ratio_minus_one"]"#,
        "what stands for the size of a token's policy gradient",
    ),
    OptionField::new("group_gate", "at least 0", "[1e-8, 0.0, 1.0]", "the PPO score has to be above it"),
    OptionField::new(
        "group_counter",
        "group, sequence",
        r#"["group", "sequence"]"#,
        "whether tokens are counted from the run's start or from the response's",
    ),
    OptionField::new(
        "group_adv",
        "one_step, gae",
        r#"["one_step", "gae"]"#,
        "a token's advantage as the scores see it: r - V, or GAE",
    ),
    OptionField::new(
        "endpoint_return",
        "segment, prefix, gae",
        r#"["segment", "prefix", "gae"]"#,
        "the rewards of the run, of the response so far, or GAE's return",
    ),
    OptionField::new("gamma", "in [0, 1]", "[1.0, 0.5]", "GAE's discount, where GAE is asked for"),
    OptionField::new("lam", "in [0, 1]", "[1.0, 0.95]", "GAE's decay, where GAE is asked for"),
];

fn group_ppo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let output = reference::group_ppo::group_ppo(
        &args.real::<Ix2>("rewards")?,
        &args.real::<Ix2>("values")?,
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_old")?,
        &args.mask::<Ix2>("response_mask")?,
        &args.options()?,
    )?;
    Ok(vec![
        ("endpoints", output.endpoints.into_dyn()),
        ("advantages", output.advantages.into_dyn()),
        ("returns", output.returns.into_dyn()),
        ("threshold", scalar(output.threshold)),
        ("compression_ratio", scalar(output.metrics.compression_ratio)),
        ("efficiency_gain", scalar(output.metrics.efficiency_gain)),
        ("algorithm_effectiveness", scalar(output.metrics.algorithm_effectiveness)),
        ("total_endpoints", scalar(output.metrics.total_endpoints)),
        ("sparse", scalar(output.metrics.sparse)),
    ])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn group_ppo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let output = torch::group_ppo::group_ppo(
            args.tensor("rewards")?,
            args.tensor("values")?,
            args.tensor("logp")?,
            args.tensor("logp_old")?,
            args.tensor("response_mask")?,
            &args.options()?,
        )?;
        Ok(vec![
            ("endpoints", output.endpoints),
            ("advantages", output.advantages),
            ("returns", output.returns),
            ("threshold", output.threshold),
            ("compression_ratio", output.metrics.compression_ratio),
            ("efficiency_gain", output.metrics.efficiency_gain),
            ("algorithm_effectiveness", output.metrics.algorithm_effectiveness),
            ("total_endpoints", output.metrics.total_endpoints),
            ("sparse", output.metrics.sparse),
        ])
    }
}
