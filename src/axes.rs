//! The only shape checker: binds named axes to lengths, for ndarray and libtorch alike, so both sides report
//! the same error for the same mistake.

use crate::{Error, Result};

/// The axes bound so far. Arguments are bound in the order of the formula's signature; the first that names an
/// axis fixes its length.
///
/// ```
/// use grpo_oracle::axes::Axes;
/// let axes = Axes::default().bind("logp", &["B", "T"], &[2, 3])?.bind("advantages", &["B"], &[2])?;
/// assert_eq!(axes.length("T"), 3);
/// let error = axes.bind("response_mask", &["B", "T"], &[2, 4]).unwrap_err();
/// assert_eq!(error.code(), "shape");
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Axes {
    bound: Vec<(&'static str, usize)>,
    /// The number of axes of the arguments of any shape, once there was one.
    any: Option<usize>,
}

impl Axes {
    /// Binds the axes of one argument, or says which axis disagrees.
    ///
    /// # Errors
    /// `rank` if the argument has another number of axes than `names`, `shape` if a bound axis has another length.
    pub fn bind<N: Copy + TryInto<usize>>(
        mut self,
        argument: &str,
        names: &[&'static str],
        shape: &[N],
    ) -> Result<Self> {
        if names.len() != shape.len() {
            return Err(Error::Rank {
                argument: argument.to_owned(),
                expected: names.len(),
                got: shape.len(),
                shape: format!("[{}]", names.join(", ")),
            });
        }
        for (&name, &length) in names.iter().zip(shape) {
            let length = length.try_into().unwrap_or(0); // libtorch's sizes are signed but never negative
            match self.bound.iter().find(|(bound, _)| *bound == name) {
                None => self.bound.push((name, length)),
                Some(&(_, expected)) if expected == length => {}
                Some(&(_, expected)) => {
                    return Err(Error::Shape {
                        argument: argument.to_owned(),
                        axis: name.to_owned(),
                        expected,
                        got: length,
                    });
                }
            }
        }
        Ok(self)
    }

    /// Binds the axes of an argument of any shape, so that others of any shape must have the same one.
    ///
    /// # Errors
    /// As [`Axes::bind`]; `input` for more axes than any formula has.
    pub fn bind_any<N: Copy + TryInto<usize>>(mut self, argument: &str, shape: &[N]) -> Result<Self> {
        const NAMES: [&str; 6] = ["axis 0", "axis 1", "axis 2", "axis 3", "axis 4", "axis 5"];
        let count = *self.any.get_or_insert(shape.len());
        let names = NAMES.get(..count).ok_or_else(|| Error::input(argument, "has more than 6 axes"))?;
        self.bind(argument, names, shape)
    }

    /// The length of a bound axis; 0 for one that no argument has named.
    pub fn length(&self, name: &str) -> usize {
        self.bound.iter().find(|(bound, _)| *bound == name).map_or(0, |&(_, length)| length)
    }
}
