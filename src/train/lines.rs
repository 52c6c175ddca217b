//! Files of one JSON object a line, which somebody may read while they grow.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::file::replace;
use crate::{Error, Result};

/// Puts these lines in the place of a file, and opens it to be written on.
pub(super) fn start(path: &Path, lines: &[impl Serialize]) -> Result<File> {
    let text = lines.iter().map(|line| text(path, line)).collect::<Result<String>>()?;
    replace(path, text)?;
    OpenOptions::new().append(true).open(path).map_err(|error| Error::file(path, error))
}

/// One write a line: whoever reads along never sees half of one.
pub(super) fn append(file: &mut File, path: &Path, line: &impl Serialize) -> Result<()> {
    file.write_all(text(path, line)?.as_bytes()).map_err(|error| Error::file(path, error))
}

fn text(path: &Path, line: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(line).map_err(|error| Error::file(path, error))?;
    Ok(text + "\n")
}
