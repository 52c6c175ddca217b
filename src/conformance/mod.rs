//! Judging an implementation's answers against the reference's.

pub mod diagnosis;
mod identify;
mod judge;
mod offline;
mod process;
mod protocol;
mod relation;
pub mod report;
mod run;
mod subject;
mod tolerance;

pub use identify::{Difference, Finding, Fit, Identification, Identified, Setting, Told, identify};
pub use judge::{Judged, Outcome, Status, Task, judge};
pub use offline::{Answers, export};
pub use process::{LONGEST_LINE, Limits, Line, Lines, Process, end_adapters_on_signals};
pub use protocol::{Hello, PROTOCOL, Reply, Request};
pub use relation::{Derived, Image, RELATIONS, Relation, derived};
pub use report::{Report, Verdict};
pub use run::{find, plan, run};
#[cfg(feature = "torch")]
pub use subject::Torch;
pub use subject::{Fault, Reference, Subject};
pub use tolerance::{Dtype, Worst, compare, is_applicable, tolerance, worst};
