//! The `grpo-oracle` command.

mod command;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use command::{
    certify_verl, eval, export_verl, extract, identify, import_verl, kills, offline, prepare_verl, report,
    show, verify, zoo,
};
use grpo_oracle::evaluate::{evaluate, evaluate_outputs};
use grpo_oracle::{Result, fixture};

/// The executable specification of group-relative policy optimisation.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show every formula with its line of maths.
    List,
    /// Show a formula: inputs, options with defaults, outputs, clauses, rivals.
    Explain {
        /// The formula's id, as `list` shows it.
        formula: String,
    },
    /// Show the named conventions, or what one of them computes with which options.
    Conventions {
        /// The convention's name.
        name: Option<String>,
    },
    /// Answer a question read from standard input: {"options": {...}, "inputs": {...}}.
    Eval {
        /// The formula's id, as `list` shows it.
        formula: String,
        /// Options that the question leaves out are those of this convention, not the specification's defaults.
        #[arg(long)]
        convention: Option<String>,
        /// Leave the gradients out: they cost a pass over the input for every entry of it.
        #[arg(long)]
        no_gradients: bool,
    },
    /// Judge an implementation on the golden cases.
    #[command(
        after_help = "Exit status: 0 all passed; 1 an answer is wrong; 2 wrong usage, or the adapter cannot be \
                            talked to; 3 incomplete: no answer is wrong, but some question was not answered."
    )]
    Verify(verify::Verify),
    /// Show what a run found, from the file that `verify --jsonl` wrote, and write the other reports from it.
    Report(report::Show),
    /// Show what changed between two runs, from the files that `verify --jsonl` wrote.
    #[command(after_help = "Exit status: 0 nothing got worse; 1 something did; 2 wrong usage.")]
    Diff(report::Compare),
    /// Write the questions to a file, for an implementation that no pipe reaches.
    Export(offline::Export),
    /// Judge a file of answers to the questions that `export` wrote.
    Judge(offline::Judge),
    /// Judge known-wrong implementations, each of which has to be caught and called by its name.
    Zoo(zoo::Zoo),
    /// Tell which options an implementation computes with, and which named conventions have them.
    #[command(
        after_help = "Exit status: 0 a setting was found for every formula; 1 some formula is computed with no \
                            known setting; 2 wrong usage, or the adapter cannot be talked to; 3 incomplete: a \
                            formula was not answered for, or a question ended in a crash or a hang."
    )]
    Identify(identify::Identify),
    /// Write a configuration of the trainer as a job for verl 0.9.1: the same mathematics on its many GPUs.
    ExportVerl(export_verl::ExportVerl),
    /// Read verl's command line, script or YAML as a configuration of the trainer.
    ImportVerl(import_verl::ImportVerl),
    /// Judge the installed verl on what a configuration computes with, configured as the configuration is exported.
    #[command(
        after_help = "Exit status: 0 verl computes the same; 1 it computes something else; 2 wrong usage, or verl cannot be \
                            asked; 3 incomplete: some formula was not answered for."
    )]
    CertifyVerl(certify_verl::CertifyVerl),
    /// Write GSM8K as verl reads it: train.parquet and test.parquet.
    PrepareVerl(prepare_verl::PrepareVerl),
    /// Show one golden case as a small repro of its own.
    Extract {
        /// The formula's id, as `list` shows it.
        formula: String,
        /// The case's slug; that of a relation is CASE~RELATION.
        case: String,
        /// Write a Python script that fails until the function in it is right; it needs Python's own library only.
        #[arg(long)]
        python: bool,
        /// The folder of the fixtures, instead of those that were built in.
        #[arg(long, value_name = "FOLDER")]
        fixtures: Option<PathBuf>,
    },
    /// Write or check the golden fixtures.
    Fixtures {
        #[command(subcommand)]
        action: FixtureAction,
    },
}

#[derive(Subcommand)]
enum FixtureAction {
    /// Write every fixture anew.
    Generate {
        /// The folder.
        #[arg(default_value = "fixtures/v1")]
        folder: PathBuf,
    },
    /// Check that the files are what `generate` would write.
    Check {
        /// The folder.
        #[arg(default_value = "fixtures/v1")]
        folder: PathBuf,
    },
    /// Show for each wrong variant the case that gives it away in each format.
    Kills(kills::Kills),
}

fn main() -> ExitCode {
    run(Command::parse().action).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

fn run(action: Action) -> Result<ExitCode> {
    let text = match action {
        Action::List => show::list(),
        Action::Explain { formula } => show::explain(&formula)?,
        Action::Conventions { name } => show::conventions(name.as_deref())?,
        Action::Eval { formula, convention, no_gradients } => {
            let evaluate = if no_gradients { evaluate_outputs } else { evaluate };
            eval::eval(&formula, convention.as_deref(), evaluate)?
        }
        Action::Verify(arguments) => return verify::verify(&arguments),
        Action::Report(arguments) => return report::show(&arguments),
        Action::Diff(arguments) => return report::compare(&arguments),
        Action::Export(arguments) => offline::export(&arguments)?,
        Action::Judge(arguments) => return offline::judge(&arguments),
        Action::Zoo(arguments) => return zoo::zoo(&arguments),
        Action::Identify(arguments) => return identify::identify(&arguments),
        Action::ExportVerl(arguments) => export_verl::export_verl(&arguments)?,
        Action::ImportVerl(arguments) => import_verl::import_verl(&arguments)?,
        Action::CertifyVerl(arguments) => return certify_verl::certify_verl(&arguments),
        Action::PrepareVerl(arguments) => prepare_verl::prepare_verl(&arguments)?,
        Action::Extract { formula, case, python, fixtures } => {
            extract::extract(&formula, &case, python, fixtures.as_deref())?
        }
        Action::Fixtures { action: FixtureAction::Generate { folder } } => {
            let files = fixture::generate(&folder)?;
            format!("wrote {} fixture files under {}\n", files.len(), folder.display())
        }
        Action::Fixtures { action: FixtureAction::Check { folder } } => {
            let cases = fixture::check(&folder)?;
            format!("{cases} cases under {} are as the reference gives them\n", folder.display())
        }
        Action::Fixtures { action: FixtureAction::Kills(arguments) } => kills::kills(&arguments)?,
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(_) => Ok(ExitCode::from(2)), // nobody is listening any more
    }
}
