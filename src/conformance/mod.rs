//! Judging an implementation's answers against the reference's.

mod diagnosis;
mod judge;
mod protocol;
mod relation;
mod report;
mod run;
mod subject;
mod tolerance;

pub use judge::{Judged, Outcome, Status, Task, judge};
pub use protocol::{Hello, PROTOCOL, Reply, Request};
pub use relation::{Derived, Image, RELATIONS, Relation, derived};
pub use report::{Report, Verdict};
pub use run::{plan, run};
pub use subject::{Fault, Reference, Subject};
pub use tolerance::{Dtype, Worst, compare, is_applicable, worst};
