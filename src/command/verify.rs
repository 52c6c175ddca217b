//! `verify`: an implementation judged on the golden cases.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use grpo_oracle::conformance::{Dtype, Reference, Subject, Verdict, plan, run};
use grpo_oracle::{Result, fixture};

/// Who is judged, and on what.
#[derive(Args)]
pub(crate) struct Verify {
    /// Judge an implementation of this package instead of an adapter.
    #[arg(long, value_name = "NAME")]
    builtin: BuiltIn,
    /// The format that the built-in implementation computes in.
    #[arg(long, value_name = "DTYPE", default_value = "f64", requires = "builtin")]
    dtype: Format,
    /// Only the formulas whose ids begin with one of these.
    #[arg(long, value_name = "ID")]
    formula: Vec<String>,
    /// The folder of the fixtures, instead of those that were built in.
    #[arg(long, value_name = "FOLDER")]
    fixtures: Option<PathBuf>,
    /// Leave out the relations: questions made of the golden ones.
    #[arg(long)]
    no_relations: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BuiltIn {
    /// The ndarray reference.
    Reference,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
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

pub(crate) fn verify(arguments: &Verify) -> Result<ExitCode> {
    let mut subject: Box<dyn Subject> = match arguments.builtin {
        BuiltIn::Reference => Box::new(Reference::new(arguments.dtype.into())?),
    };
    let fixtures = match &arguments.fixtures {
        Some(folder) => fixture::read_all(folder)?,
        None => fixture::built_in()?,
    };
    let mut formulas = subject.hello().formulas.clone();
    formulas.retain(|id| {
        arguments.formula.is_empty() || arguments.formula.iter().any(|start| id.starts_with(start.as_str()))
    });
    let tasks = plan(&fixtures, &formulas, !arguments.no_relations);
    let report = run(subject.as_mut(), "builtin", tasks, |_| {});
    for (status, count) in report.counts() {
        println!("{:16}{count}", status.word());
    }
    Ok(match report.verdict() {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Failed => ExitCode::from(1),
        Verdict::Incomplete => ExitCode::from(3),
    })
}
