//! `fixtures kills`: which case gives each wrong variant away.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use grpo_oracle::conformance::Dtype;
use grpo_oracle::fixture::{self, Kill};
use grpo_oracle::{Error, Result};

/// What is shown of the kill map.
#[derive(Args)]
pub(crate) struct Kills {
    /// Only the formulas whose ids begin so.
    #[arg(default_value = "")]
    formula: String,
    /// Only what no case gives away in double precision or no case in single.
    #[arg(long)]
    gaps: bool,
    /// The folder of the fixtures, instead of those that were built in.
    #[arg(long, value_name = "FOLDER")]
    fixtures: Option<PathBuf>,
}

pub(crate) fn kills(arguments: &Kills) -> Result<String> {
    let mut fixtures = match &arguments.fixtures {
        Some(folder) => fixture::read_all(folder)?,
        None => fixture::built_in()?,
    };
    fixtures.retain(|fixture| fixture.formula.starts_with(&arguments.formula));
    if fixtures.is_empty() {
        let hint = format!("none begins with `{}`; `grpo-oracle list` shows them all", arguments.formula);
        return Err(Error::UnknownFormula { id: arguments.formula.clone(), hint });
    }
    let kills = fixture::kills(&fixtures)?;
    let missing = |dtype| kills.iter().filter(|kill| kill.case(dtype).is_none()).count();
    let mut text = String::new();
    for kill in kills.iter().filter(|kill| !arguments.gaps || is_gap(kill)) {
        let case = |dtype| kill.case(dtype).unwrap_or("-");
        let [f64, f32, bf16] = Dtype::ALL.map(case);
        let _ = writeln!(text, "{}  {}", kill.formula, kill.variant);
        let _ = writeln!(text, "    f64 {f64}  f32 {f32}  bf16 {bf16}");
    }
    let _ = writeln!(text, "{} wrong variants; not given away by any case:", kills.len());
    for dtype in Dtype::ALL {
        let _ = writeln!(text, "    {:5}{}", dtype.name(), missing(dtype));
    }
    Ok(text)
}

fn is_gap(kill: &Kill) -> bool {
    kill.case(Dtype::F64).is_none() || kill.case(Dtype::F32).is_none()
}
