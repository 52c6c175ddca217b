//! Files that are whole or not there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Makes sure that a file can be written, and removes what an earlier run left there: were this one cut short before its
/// first word, the old result would be taken for its own.
///
/// # Errors
/// `file` if it cannot be written.
pub fn clear(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a file in it"));
    }
    let is_other = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let target = target(path);
    let tried = if is_other { fs::write(&target, "") } else { fs::write(beside(&target), "") };
    let removed = match fs::metadata(&target) {
        Ok(found) if found.is_file() => fs::remove_file(&target),
        _ => Ok(()),
    };
    let cleaned = if is_other { Ok(()) } else { fs::remove_file(beside(&target)) };
    tried.and(removed).and(cleaned).map_err(|problem| unwritable(path, &problem))
}

/// Puts this in the place of a file: written beside and renamed, so that nobody ever sees half of it.
///
/// # Errors
/// `file` if it cannot be written.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let target = target(path);
    // What is not a file, such as a terminal or a pipe, cannot be replaced and is written to.
    let written = match fs::metadata(&target) {
        Ok(found) if !found.is_file() => fs::write(&target, content),
        _ => fs::write(beside(&target), content).and_then(|()| fs::rename(beside(&target), &target)),
    };
    written.map_err(|problem| unwritable(path, &problem))
}

/// The file itself, if the path is a link to it.
fn target(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// The error of a file that cannot be written.
pub(crate) fn unwritable(path: &Path, problem: &std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {problem}"))
}
