//! `certify-verl`: whether the installed verl computes what a configuration computes with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use grpo_oracle::conformance::{Process, Verdict, end_adapters_on_signals};
use grpo_oracle::verl::certificate::{Certificate, Part, certify, parts};
use grpo_oracle::verl::export::{Export, export};
use grpo_oracle::{Error, Result, file, fixture};

use super::export_verl::read;
use super::report::bar;
use super::subject::{Patience, quoted};

/// Which configuration, and where verl is.
#[derive(Args)]
pub(crate) struct CertifyVerl {
    /// A configuration in YAML, the config.json of a run, or a preset: tiny, demo, gsm8k
    config: PathBuf,
    /// What is to be otherwise, such as algorithm.adv_estimator=rloo
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// What a file leaves open is as in this preset
    #[arg(long, default_value = "demo")]
    preset: String,
    /// The Python that has verl, hydra-core, and the plug-in if the configuration needs it.
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Write the page (Markdown) to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    patience: Patience,
}

/// What the Python of the user is given to run, by file name.
const SCRIPTS: [(&str, &str); 4] = [
    ("verl_configured.py", include_str!("../../examples/adapters/verl_configured.py")),
    ("adapter.py", include_str!("../../examples/adapters/adapter.py")),
    ("stand_ins.py", include_str!("../../examples/adapters/stand_ins.py")),
    ("torch_arrays.py", include_str!("../../examples/adapters/torch_arrays.py")),
];

pub(crate) fn certify_verl(arguments: &CertifyVerl) -> Result<ExitCode> {
    if let Some(out) = &arguments.out {
        file::clear(out)?;
    }
    end_adapters_on_signals();
    let read = read(&arguments.config, &arguments.preset, &arguments.settings)?;
    let parts = parts(&read.config, &fixture::built_in()?)?;
    let certificate = certificate(arguments, &export(&read)?, parts)?;
    let page = certificate.page();
    match &arguments.out {
        Some(out) => {
            file::replace(out, &page)?;
            println!("{}", certificate.headline());
        }
        None => print!("{page}"),
    }
    Ok(match certificate.verdict() {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Failed => ExitCode::from(1),
        Verdict::Incomplete => ExitCode::from(3),
    })
}

fn certificate(arguments: &CertifyVerl, job: &Export, parts: Vec<Part>) -> Result<Certificate> {
    let folder = Folder::new()?;
    for (name, text) in SCRIPTS {
        file::replace(&folder.0.join(name), text)?;
    }
    let script = folder.0.join("verl_configured.py");
    let command = format!("{} {}", quoted(&arguments.python), quoted(&script));
    let mut subject = Process::start(&command, arguments.patience.into())?;
    let bar = bar("asking verl", parts.iter().map(|part| part.within.len() + part.beyond.len()).sum());
    let certificate = certify(parts, job, &mut subject, || bar.inc(1));
    bar.finish_and_clear();
    Ok(certificate)
}

/// A folder of our own that ends with the command.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("grpo-oracle-certify-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|problem| Error::file(&path, problem))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}
