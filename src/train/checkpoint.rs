//! Checkpoints: everything that a run needs to go on as if it had never ended, in one folder a step.
//!
//! A checkpoint is written beside and then renamed, so that a folder `step-000012` is whole or is not there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::{Tensor, no_grad};

use super::algorithm::Algorithm;
use super::critic::Critic;
use super::data::Draws;
use super::optim::Optimizer;
use crate::file::unwritable;
use crate::llm::Model;
use crate::{Error, Result};

/// The folder of a run that holds its checkpoints.
pub const FOLDER: &str = "checkpoints";

/// What goes on from step to step: tensors and plain values, each under its name.
#[derive(Debug, Default)]
pub struct State {
    tensors: BTreeMap<String, Tensor>,
    values: BTreeMap<String, Value>,
}

impl State {
    /// Puts a tensor in. It is not copied: save before it changes.
    pub fn tensor(&mut self, name: impl Into<String>, tensor: &Tensor) {
        self.tensors.insert(name.into(), tensor.detach());
    }

    /// Puts a value in.
    ///
    /// # Errors
    /// `input` if JSON cannot hold it.
    pub fn value(&mut self, name: impl Into<String>, value: &impl Serialize) -> Result<()> {
        let name = name.into();
        let value = serde_json::to_value(value).map_err(|error| Error::input(&name, error.to_string()))?;
        self.values.insert(name, value);
        Ok(())
    }

    /// Gives a tensor the entries that it had.
    ///
    /// # Errors
    /// `input` if there is none of this name, or it has another shape.
    pub fn restore(&mut self, name: &str, tensor: &mut Tensor) -> Result<()> {
        let saved = self.tensors.remove(name).ok_or_else(|| missing(name))?;
        if saved.size() != tensor.size() {
            let problem = format!("has the shape {:?} where {:?} is wanted", saved.size(), tensor.size());
            return Err(Error::input(name, problem));
        }
        no_grad(|| tensor.copy_(&saved));
        Ok(())
    }

    /// Takes a value out.
    ///
    /// # Errors
    /// `input` if there is none of this name, or it is something else.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let value = self.values.remove(name).ok_or_else(|| missing(name))?;
        serde_json::from_value(value).map_err(|error| Error::input(name, error.to_string()))
    }

    /// The error of what nobody took: the checkpoint is another run's.
    ///
    /// # Errors
    /// `input` with the name of the first.
    pub fn finish(self) -> Result<()> {
        match self.tensors.into_keys().chain(self.values.into_keys()).next() {
            Some(name) => {
                Err(Error::input(name, "is in the checkpoint, but this configuration has no use for it"))
            }
            None => Ok(()),
        }
    }
}

fn missing(name: &str) -> Error {
    Error::input(name, "is not in the checkpoint, which is of another configuration")
}

/// All that changes from step to step beside the policy.
#[derive(Debug)]
pub struct Learner {
    /// How rewards become advantages.
    pub algorithm: Algorithm,
    /// What moves the policy.
    pub optimizer: Optimizer,
    /// The critic, if there is one.
    pub critic: Option<Critic>,
    /// Where in the problems the run is.
    pub draws: Draws,
}

impl Learner {
    /// Writes a checkpoint after a step, as [`save`]. `reference` is the reference policy if it is not what the model's
    /// files hold.
    ///
    /// # Errors
    /// As [`save`].
    pub fn save(
        &self,
        policy: &Model,
        reference: Option<&Model>,
        run: &Path,
        step: usize,
        keep: Option<usize>,
    ) -> Result<()> {
        let mut state = State::default();
        for (name, tensor) in models(policy, reference) {
            state.tensor(name, &tensor);
        }
        self.optimizer.save("optimizer", &mut state)?;
        self.critic.as_ref().map_or(Ok(()), |critic| critic.save(&mut state))?;
        state.value("algorithm", &self.algorithm.carried())?;
        state.value("position", &self.draws.position)?;
        save(run, step, &state, keep).map(drop)
    }

    /// Goes back to the newest checkpoint of a run, the models too; gives its step.
    ///
    /// # Errors
    /// As [`newest`] and [`State::restore`].
    pub fn restore(&mut self, policy: &Model, reference: Option<&Model>, run: &Path) -> Result<usize> {
        let (step, mut state) = newest(run)?;
        for (name, mut tensor) in models(policy, reference) {
            state.restore(&name, &mut tensor)?;
        }
        self.optimizer.restore("optimizer", &mut state)?;
        self.critic.as_mut().map_or(Ok(()), |critic| critic.restore(&mut state))?;
        self.algorithm.carry(&state.take("algorithm")?);
        self.draws.position = state.take("position")?;
        state.finish()?;
        Ok(step)
    }
}

fn models(policy: &Model, reference: Option<&Model>) -> Vec<(String, Tensor)> {
    let policy = policy.trainable().into_iter().map(|(name, tensor)| (format!("policy.{name}"), tensor));
    let reference = reference.map(Model::trainable).unwrap_or_default();
    policy.chain(reference.into_iter().map(|(name, tensor)| (format!("reference.{name}"), tensor))).collect()
}

/// Writes the state after a step, and takes the oldest checkpoints away so that `keep` are left.
///
/// # Errors
/// `file` if the folder cannot be written; the checkpoints before are still there then.
pub fn save(run: &Path, step: usize, state: &State, keep: Option<usize>) -> Result<PathBuf> {
    let folder = run.join(FOLDER).join(format!("step-{step:06}"));
    if folder.exists() {
        return Ok(folder); // of this very step: a run that went on from it and had nothing left to do
    }
    let beside = folder.with_extension("new");
    write(&beside, state)
        .and_then(|()| fs::rename(&beside, &folder).map_err(|error| unwritable(&folder, &error)))
        .inspect_err(|_| _ = fs::remove_dir_all(&beside))?; // on a full disk it would be in the way
    let all = steps(run)?;
    let surplus = all.len().saturating_sub(keep.unwrap_or(usize::MAX).max(1));
    for (_, old) in &all[..surplus] {
        fs::remove_dir_all(old).map_err(|error| unwritable(old, &error))?;
    }
    Ok(folder)
}

/// The state as the files of a new folder, on the disk before anyone gives it its name: a power cut must not leave a whole
/// name over half a file.
fn write(folder: &Path, state: &State) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| unwritable(folder, &error))?; // of a run that was ended while it wrote
    }
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    let (tensors, values) = (folder.join("tensors.safetensors"), folder.join("values.json"));
    let named: Vec<(&str, Tensor)> =
        state.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.contiguous())).collect();
    Tensor::write_safetensors(&named, &tensors)
        .map_err(|error| Error::file(&tensors, format!("cannot be written: {error}")))?;
    let text = serde_json::to_vec_pretty(&state.values).map_err(|error| Error::file(&values, error))?;
    fs::write(&values, text).map_err(|error| unwritable(&values, &error))?;
    for path in [&tensors, &values] {
        File::open(path).and_then(|file| file.sync_all()).map_err(|error| unwritable(path, &error))?;
    }
    Ok(())
}

/// The step of the newest checkpoint of a run.
///
/// # Errors
/// `file` if there is none.
pub fn newest_step(run: &Path) -> Result<usize> {
    Ok(newest_folder(run)?.0)
}

fn newest_folder(run: &Path) -> Result<(usize, PathBuf)> {
    let none = || Error::file(run, "holds no checkpoint to go on from; see trainer.save_freq");
    steps(run)?.pop().ok_or_else(none)
}

/// The newest checkpoint of a run: its step and its state.
///
/// # Errors
/// `file` if there is none, or it cannot be read.
pub fn newest(run: &Path) -> Result<(usize, State)> {
    let (step, folder) = newest_folder(run)?;
    let (tensors, values) = (folder.join("tensors.safetensors"), folder.join("values.json"));
    let read = Tensor::read_safetensors(&tensors)
        .map_err(|error| Error::file(&tensors, format!("cannot be read ({error})")))?;
    let text = fs::read(&values).map_err(|error| Error::file(&values, error))?;
    let values = serde_json::from_slice(&text)
        .map_err(|error| Error::file(&values, format!("cannot be read ({error})")))?;
    Ok((step, State { tensors: read.into_iter().collect(), values }))
}

/// The whole checkpoints of a run, the oldest first.
fn steps(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let folder = run.join(FOLDER);
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut steps = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::file(&folder, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            steps.push((step, path));
        }
    }
    steps.sort();
    Ok(steps)
}
