//! What the differences of docs/matrix.md mean, in words: by the name of the package's page.

/// A package's page, and a note.
pub(crate) const NOTES: &[(&str, &str)] = &[];
