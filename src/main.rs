//! The `grpo-oracle` command.

mod command;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use command::{eval, offline, show, verify, zoo};
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
    /// Judge known-wrong implementations, each of which has to be caught and called by its name.
    Zoo(zoo::Zoo),
    /// Write the questions to a file, for an implementation that no pipe reaches.
    Export(offline::Export),
    /// Judge a file of answers to the questions that `export` wrote.
    Judge(offline::Judge),
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
        Action::Zoo(arguments) => return zoo::zoo(&arguments),
        Action::Export(arguments) => offline::export(&arguments)?,
        Action::Judge(arguments) => return offline::judge(&arguments),
        Action::Fixtures { action: FixtureAction::Generate { folder } } => {
            let files = fixture::generate(&folder)?;
            format!("wrote {} fixture files under {}\n", files.len(), folder.display())
        }
        Action::Fixtures { action: FixtureAction::Check { folder } } => {
            let cases = fixture::check(&folder)?;
            format!("{cases} cases under {} are as the reference gives them\n", folder.display())
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(_) => Ok(ExitCode::from(2)), // nobody is listening any more
    }
}
