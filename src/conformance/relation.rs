//! Questions made of questions: what must not change the answer, or must change it in a known way.

use super::Task;

/// The questions that the relations make of a case, with the reference's answers.
pub(super) fn derived(_task: &Task) -> Vec<Task> {
    Vec::new()
}
