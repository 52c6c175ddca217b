//! LoRA: low-rank updates of frozen linear maps, in `peft`'s meaning and files.

use std::collections::BTreeMap;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::model::{Linear, Model};
use super::save::{self, write_json, write_tensors};
use super::{Llm, weights};
use crate::options;
use crate::torch::optim;
use crate::{Error, Result};

/// Which linear maps get a low-rank update, and how large it is. Fields as `peft` names them, but for `r` and
/// `lora_alpha`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Columns of B and rows of A.
    pub rank: i64,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The maps' names, such as `q_proj` or `mlp.up_proj`; `all-linear` for all of them.
    pub target_modules: Vec<String>,
}

impl Lora {
    /// Whether this map, such as `model.layers.0.self_attn.q_proj`, is one of the targets.
    fn targets(&self, name: &str) -> bool {
        self.target_modules.iter().any(|target| is_target(target, name))
    }

    fn check(&self, names: &[String]) -> Result<()> {
        if self.rank < 1 {
            return Err(Error::option("lora_rank", format!("is {}; it must be at least 1", self.rank)));
        }
        if !self.alpha.is_finite() {
            return Err(Error::option(
                "lora_alpha",
                format!("is {}; it must be a finite number", self.alpha),
            ));
        }
        if self.target_modules.is_empty() {
            return Err(Error::option("target_modules", "names no linear map; `all-linear` names all"));
        }
        match self.target_modules.iter().find(|target| !names.iter().any(|name| is_target(target, name))) {
            None => Ok(()),
            Some(unknown) => {
                let known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj and all-linear";
                Err(Error::option("target_modules", format!("names `{unknown}`; there are {known}")))
            }
        }
    }
}

/// As in `peft`: the whole name, or its end after a dot.
fn is_target(target: &str, name: &str) -> bool {
    target == "all-linear"
        || name == target
        || name.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

/// The update of one linear map: `A` `[R, I]` and `B` `[O, R]`, in f32 at least, as both change by little at a time.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    alpha: f64,
}

impl Adapter {
    /// What is added to the map's output for `x` `[.., I]`.
    pub(super) fn update(&self, x: &Tensor) -> Tensor {
        let (size, kind) = (x.size(), x.kind());
        let rows = x.to_kind(self.a.kind()).reshape([-1, self.a.size()[1]]);
        let update = self.low_rank(&rows.matmul(&self.a.tr()), &self.b);
        update.to_kind(kind).view([&size[..size.len() - 1], &[-1]].concat().as_slice())
    }

    /// What is added to the map's weight, `[O, I]`.
    pub(super) fn delta(&self) -> Tensor {
        self.low_rank(&self.b, &self.a.tr())
    }

    /// `left right^T` `[N, M]` of `left` `[N, R]` and `right` `[M, R]`, scaled as LoRA's update is: it is the formula's
    /// update with A already applied to the input, over a frozen weight of zeros, because the frozen weight has its own
    /// quicker product.
    #[allow(clippy::expect_used, reason = "the shapes and alpha were checked when the adapter was made")]
    fn low_rank(&self, left: &Tensor, right: &Tensor) -> Tensor {
        let rank = self.a.size()[0];
        let identity = Tensor::eye(rank, (left.kind(), left.device()));
        let options = options::Lora { alpha: self.alpha, rank: None };
        optim::lora(left, &right.zeros_like(), &identity, right, &options).expect("an adapter fits its map")
    }

    pub(super) fn copy(&self) -> Self {
        Self { a: self.a.detach().copy(), b: self.b.detach().copy(), alpha: self.alpha }
    }
}

impl Model {
    /// Puts adapters beside the target maps, which change nothing yet: B is zero, A uniform as `peft` draws it (Kaiming,
    /// a = sqrt 5). From here on the adapters alone are trainable.
    ///
    /// # Errors
    /// `option` for a rank below 1, an alpha that is not finite, a target that no map has; `unsupported` if there are
    /// adapters already.
    pub fn add_lora(&mut self, lora: &Lora, seed: u64) -> Result<()> {
        if self.lora().is_some() {
            let what = "the model has adapters already; merge them or load it anew".into();
            return Err(Error::Unsupported { what });
        }
        let names: Vec<String> = self.linears_mut().into_iter().map(|(name, _)| name).collect();
        lora.check(&names)?;
        self.set_trainable(false);
        for (index, (name, linear)) in self.linears_mut().into_iter().enumerate() {
            if lora.targets(&name) {
                linear.adapter = Some(fresh(linear, lora, seed, index as u64));
            }
        }
        self.set_lora(lora.clone());
        self.set_trainable(true);
        Ok(())
    }
}

/// The adapter that a map starts with; each map draws from a stream of its own.
fn fresh(linear: &Linear, lora: &Lora, seed: u64, stream: u64) -> Adapter {
    let size = linear.weight.size();
    let (out, inputs, rank) = (size[0], size[1], lora.rank);
    let kind = if linear.weight.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    let bound = 1.0 / (inputs as f64).sqrt();
    let a: Vec<f64> = (0..rank * inputs).map(|_| bound * (2.0 * random.random::<f64>() - 1.0)).collect();
    let device = linear.weight.device();
    Adapter {
        a: Tensor::from_slice(&a).view([rank, inputs]).to_kind(kind).to_device(device),
        b: Tensor::zeros([out, rank], (kind, device)),
        alpha: lora.alpha,
    }
}

/// The files of a directory of adapters.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Before a parameter's name in `peft`'s files.
const PREFIX: &str = "base_model.model.";

impl Llm {
    /// Writes the adapters alone, as `peft` does; `base` is the model's path or name for its readers. A directory that
    /// was saved before is replaced; one with anything else in it is not.
    ///
    /// # Errors
    /// `unsupported` if there are none, `file` if they cannot be written.
    pub fn save_adapters(&self, directory: &Path, base: &str) -> Result<()> {
        let lora = self.model.lora().ok_or_else(|| Error::Unsupported {
            what: "the model has no adapters to save; save the model itself".into(),
        })?;
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "target_modules": target_modules(lora),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
            "use_rslora": false,
            "use_dora": false,
        });
        let tensors =
            self.model.adapters().into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor));
        let tensors: Vec<_> = tensors.collect();
        save::replace(directory, |directory| {
            write_json(&directory.join(CONFIG), &config)?;
            write_tensors(&directory.join(WEIGHTS), &tensors)
        })
    }

    /// Puts the adapters of a directory that `peft` or [`Llm::save_adapters`] wrote beside the model's maps.
    ///
    /// # Errors
    /// `file` if the directory cannot be read, does not fit the model, or describes another kind of adapter;
    /// `unsupported` if the model has adapters already.
    pub fn load_adapters(&mut self, directory: &Path) -> Result<()> {
        let path = directory.join(CONFIG);
        let at = |problem: String| Error::file(&path, problem);
        let text = std::fs::read_to_string(&path).map_err(|e| at(format!("cannot be read ({e})")))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| at(format!("is no adapter's config ({e})")))?;
        let lora = read_config(&json).map_err(at)?;

        let path = directory.join(WEIGHTS);
        let at = |problem: String| Error::file(&path, problem);
        let tensors = weights::read_tensors(&path)?;
        let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        self.model.add_lora(&lora, 0).map_err(|error| at(format!("does not fit the model ({error})")))?;
        let filled = self.model.adapters().into_iter().try_for_each(|(name, mut own)| {
            let tensor = tensors
                .remove(&format!("{PREFIX}{name}"))
                .ok_or_else(|| at(format!("has no tensor `{PREFIX}{name}`; it is incomplete")))?;
            let (got, wanted) = (tensor.size(), own.size());
            if got != wanted {
                return Err(at(format!(
                    "has `{name}` in the shape {got:?} where the model wants {wanted:?}"
                )));
            }
            tch::no_grad(|| own.copy_(&tensor));
            Ok(())
        });
        let filled = filled.and_then(|()| match tensors.keys().next() {
            None => Ok(()),
            Some(name) => Err(at(format!("has the tensor `{name}`, for which the model has no place"))),
        });
        if filled.is_err() {
            self.model.remove_lora();
        }
        filled
    }
}

/// In the form that `peft` reads: the word itself, or the list.
fn target_modules(lora: &Lora) -> Value {
    match lora.target_modules.as_slice() {
        [all] if all == "all-linear" => json!(all),
        list => json!(list),
    }
}

/// An adapter's config, if it asks for nothing that there is not.
fn read_config(json: &Value) -> std::result::Result<Lora, String> {
    if json["peft_type"] != "LORA" {
        return Err(format!("is of the type {}; only LORA is supported", json["peft_type"]));
    }
    let absent = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(entries) => entries.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::String(text) => text == "none",
        _ => false,
    };
    let unsupported = [
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "bias",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "exclude_modules",
        "target_parameters",
        "lora_bias",
    ];
    if let Some(key) = unsupported.into_iter().find(|key| !absent(&json[*key])) {
        return Err(format!("sets {key} to {}, which is not supported", json[key]));
    }
    let texts = |list: &Vec<Value>| list.iter().map(|text| text.as_str().map(str::to_owned)).collect();
    let target_modules = match &json["target_modules"] {
        Value::Array(list) => texts(list),
        Value::String(text) if text == "all-linear" => Some(vec![text.clone()]),
        _ => None,
    };
    match (json["r"].as_i64(), json["lora_alpha"].as_f64(), target_modules) {
        (Some(rank), Some(alpha), Some(target_modules)) => Ok(Lora { rank, alpha, target_modules }),
        _ => Err("needs r, lora_alpha and a list of target_modules".into()),
    }
}
