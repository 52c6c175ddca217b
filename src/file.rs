//! Files that are whole or not there.

use std::fs;
use std::io::ErrorKind;
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
        _ => {
            let new = beside(&target);
            let moved = fs::write(&new, content).and_then(|()| fs::rename(&new, &target));
            // Half a file is of no use, and on a full disk it is in the way.
            moved.inspect_err(|_| _ = fs::remove_file(&new))
        }
    };
    written.map_err(|problem| unwritable(path, &problem))
}

/// Puts what `fill` writes into a new folder in the place of a folder: nobody ever sees half of it, and a run cut short
/// leaves the old one, or at worst both beside each other, each complete. An existing folder with anything in it is
/// replaced only if `ours` says so; what it says otherwise is the error.
///
/// # Errors
/// As `ours` and `fill` give them, and `file` if the folder cannot be written.
pub fn replace_folder(
    path: &Path,
    ours: impl FnOnce(&Path) -> Result<()>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let target = target(path);
    let at = |problem: std::io::Error| unwritable(path, &problem);
    let empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if target.exists() && !empty(&target) {
        ours(&target)?;
    }
    let (new, old) = (beside(&target), with_ending(&target, ".old"));
    let clean = |path: &Path| if path.is_dir() { fs::remove_dir_all(path) } else { Ok(()) };
    clean(&new).and_then(|()| fs::create_dir_all(&new)).map_err(at)?;
    let filled = fill(&new).and_then(|()| {
        clean(&old).map_err(at)?;
        if target.exists() {
            fs::rename(&target, &old).map_err(at)?;
        }
        fs::rename(&new, &target).map_err(at)
    });
    // The old folder is of no more use, and neither is what a failure left.
    let cleaned = clean(if filled.is_ok() { &old } else { &new }).map_err(at);
    filled.and(cleaned)
}

/// The file itself, if the path is a link to it.
fn target(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn beside(path: &Path) -> PathBuf {
    with_ending(path, ".new")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// The error of a file that cannot be written.
pub(crate) fn unwritable(path: &Path, problem: &std::io::Error) -> Error {
    let advice = match problem.kind() {
        ErrorKind::StorageFull => "; make room and try again",
        _ => "",
    };
    Error::file(path, format!("cannot be written: {problem}{advice}"))
}
