//! Who is asked, and about what: the arguments that several subcommands have in common.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
#[cfg(feature = "torch")]
use grpo_oracle::conformance::Torch;
use grpo_oracle::conformance::{Dtype, Limits, Process, Reference, Subject, Task, plan};
use grpo_oracle::fixture::{self, Fixture};
use grpo_oracle::formula::Formula;
use grpo_oracle::{Error, Result};

/// Who is asked.
#[derive(Args)]
pub(crate) struct Who {
    /// The command line of the adapter to ask, such as "python my.py". No shell runs it.
    #[arg(long, value_name = "COMMAND", required_unless_present = "builtin", conflicts_with = "builtin")]
    adapter: Option<String>,
    /// Ask an implementation of this package instead of an adapter.
    #[arg(long, value_name = "NAME")]
    builtin: Option<BuiltIn>,
    /// The format that the built-in implementation computes in.
    #[arg(
        long,
        value_name = "DTYPE",
        default_value = "f64",
        requires = "builtin",
        conflicts_with = "adapter"
    )]
    dtype: Format,
    /// The device that libtorch computes on: cpu, or cuda:0 for the first of CUDA.
    #[cfg(feature = "torch")]
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device, requires = "builtin", conflicts_with = "adapter")]
    device: tch::Device,
    #[command(flatten)]
    patience: Patience,
}

/// About what.
#[derive(Args)]
pub(crate) struct Selection {
    /// Only the formulas whose ids begin with one of these.
    #[arg(long, value_name = "ID")]
    formula: Vec<String>,
    /// The folder of the fixtures, instead of those that were built in.
    #[arg(long, value_name = "FOLDER")]
    fixtures: Option<PathBuf>,
}

/// Which questions.
#[derive(Args)]
pub(crate) struct Questions {
    #[command(flatten)]
    selection: Selection,
    /// Leave out the relations: questions made of the golden ones.
    #[arg(long)]
    no_relations: bool,
}

/// How long an adapter is waited for.
#[derive(Args, Clone, Copy)]
pub(crate) struct Patience {
    /// How many seconds the adapter may take for an answer.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// How many seconds the adapter may take to start and say hello.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    hello_timeout: Duration,
    /// How many times the adapter is started again before it answers a question again.
    #[arg(long, value_name = "COUNT", default_value = "10")]
    restarts: usize,
}

impl From<Patience> for Limits {
    fn from(patience: Patience) -> Self {
        Self { answer: patience.timeout, hello: patience.hello_timeout, restarts: patience.restarts }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 1e6);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be a number of seconds above 0".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
enum BuiltIn {
    /// The ndarray reference.
    Reference,
    /// The libtorch implementation.
    #[cfg(feature = "torch")]
    Torch,
}

#[cfg(feature = "torch")]
fn device(text: &str) -> Result<tch::Device, String> {
    let index = match text.strip_prefix("cuda") {
        None if text == "cpu" => return Ok(tch::Device::Cpu),
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|index| index.parse().ok()),
        None => None,
    };
    let index = index.ok_or("must be cpu, cuda or cuda: and a number")?;
    let count = tch::Cuda::device_count() as usize;
    if index >= count {
        return Err(format!("is not there; libtorch finds {count} CUDA devices here"));
    }
    Ok(tch::Device::Cuda(index))
}

/// A format to compute in.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    F64,
    F32,
    Bf16,
}

impl From<Format> for Dtype {
    fn from(format: Format) -> Self {
        match format {
            Format::F64 => Self::F64,
            Format::F32 => Self::F32,
            Format::Bf16 => Self::Bf16,
        }
    }
}

impl Who {
    /// The subject, started.
    pub(crate) fn subject(&self) -> Result<Box<dyn Subject>> {
        Ok(match (&self.adapter, self.builtin) {
            (Some(command), _) => Box::new(Process::start(command, self.patience.into())?),
            (None, Some(BuiltIn::Reference) | None) => Box::new(Reference::new(self.dtype.into())),
            #[cfg(feature = "torch")]
            (None, Some(BuiltIn::Torch)) => Box::new(Torch::new(self.dtype.into(), self.device)),
        })
    }

    /// How it was named.
    pub(crate) fn name(&self) -> &str {
        self.adapter.as_deref().unwrap_or("builtin")
    }
}

impl Selection {
    /// The golden cases.
    pub(crate) fn fixtures(&self) -> Result<Vec<Fixture>> {
        match &self.fixtures {
            Some(folder) => fixture::read_all(folder),
            None => fixture::built_in(),
        }
    }

    /// The formulas that are selected and that the subject has.
    pub(crate) fn formulas(&self, has: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let is_wanted = |id: &str| {
            self.formula.is_empty() || self.formula.iter().any(|start| id.starts_with(start.as_str()))
        };
        if let Some(start) =
            self.formula.iter().find(|start| Formula::<f64>::all().all(|row| !row.id.starts_with(*start)))
        {
            Formula::<f64>::find(start)?; // says what is near
            return Err(Error::option("formula", format!("`{start}` begins no formula's id")));
        }
        let rows = Formula::<f64>::all().filter(|row| is_wanted(row.id) && has(row.id));
        Ok(rows.map(|row| row.id.to_owned()).collect())
    }
}

impl Questions {
    /// The golden cases.
    pub(crate) fn fixtures(&self) -> Result<Vec<Fixture>> {
        self.selection.fixtures()
    }

    /// The questions about the formulas that are selected and that the subject has.
    pub(crate) fn plan(&self, fixtures: &[Fixture], has: impl Fn(&str) -> bool) -> Result<Vec<Task>> {
        Ok(plan(fixtures, &self.selection.formulas(has)?, !self.no_relations))
    }
}

/// A path as a word of an adapter's command line.
pub(crate) fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
