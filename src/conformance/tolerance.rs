//! How near is near enough: derived from the formula and the input, never guessed.

use std::fmt;

/// A floating-point format that an implementation computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Double precision.
    F64,
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Every format, the finest first.
    pub const ALL: [Self; 3] = [Self::F64, Self::F32, Self::Bf16];

    /// The name used in fixtures and protocols.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// What libtorch calls it.
    #[cfg(feature = "torch")]
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::F64 => tch::Kind::Double,
            Self::F32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
        }
    }

    /// Half the distance from 1 to the next number.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON / 2.0,
            Self::F32 => f64::from(f32::EPSILON) / 2.0,
            Self::Bf16 => 1.0 / 256.0,
        }
    }

    /// The smallest number that keeps its full precision; below it, results may be flushed to 0.
    fn smallest_normal(self) -> f64 {
        match self {
            Self::F64 => f64::MIN_POSITIVE,
            Self::F32 | Self::Bf16 => f64::from(f32::MIN_POSITIVE),
        }
    }

    /// The number of the format that is nearest; of two, the one whose last bit is 0.
    pub fn rounded(self, number: f64) -> f64 {
        let single = number as f32;
        match self {
            Self::F64 => number,
            Self::F32 => f64::from(single),
            Self::Bf16 if !single.is_finite() => f64::from(single),
            Self::Bf16 => {
                let bits = single.to_bits();
                f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
            }
        }
    }

    /// Whether the format represents the number exactly.
    pub fn represents(self, number: f64) -> bool {
        !number.is_finite() || self.rounded(number) == number
    }
}

/// Whether every branch that led to an answer is certain at this precision; if not, honest implementations may differ.
pub fn is_applicable(margin: f64, dtype: Dtype) -> bool {
    margin > 4.0 * dtype.unit_roundoff()
}

/// The entry of an answer that is furthest from what it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Worst {
    /// Its row-major position.
    pub index: usize,
    /// What the reference says.
    pub expected: f64,
    /// What the implementation says.
    pub got: f64,
    /// How far it may be off.
    pub tolerance: f64,
    /// How far it is off, over the tolerance: above 1 is too far.
    pub excess: f64,
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, expected, got, tolerance, excess } = self;
        let error = (got - expected).abs();
        write!(f, "entry {index} is {got} where {expected} is expected")?;
        if *tolerance == 0.0 {
            return write!(f, " exactly");
        }
        write!(f, ": off by {error:.2e}, allowed {tolerance:.2e}")?;
        match excess {
            excess if *excess < 1e4 => write!(f, " ({excess:.2} times that)"),
            excess if excess.is_finite() => write!(f, " ({excess:.1e} times that)"),
            _ => Ok(()),
        }
    }
}

/// Compares an answer with the reference's, entry by entry: within `4 * unit_roundoff(dtype) * bound`, and exactly equal
/// where the bound is 0. Two NaNs are equal.
///
/// # Errors
/// The worst entry, if it is too far off. An answer of another length is off from its first missing or extra entry.
///
/// # Example
/// ```
/// use grpo_oracle::conformance::{Dtype, compare};
/// assert!(compare(&[1.0], &[3.0], &[1.0 + 1e-7], Dtype::F32).is_ok());
/// assert!(compare(&[1.0], &[3.0], &[1.0 + 1e-7], Dtype::F64).is_err());
/// assert!(compare(&[1.0], &[0.0], &[1.0 + 1e-16], Dtype::F64).is_ok()); // the same f64
/// ```
pub fn compare(expected: &[f64], bounds: &[f64], got: &[f64], dtype: Dtype) -> Result<(), Worst> {
    match worst(expected, bounds, got, dtype) {
        Some(worst) if worst.excess > 1.0 => Err(worst),
        _ => Ok(()),
    }
}

/// The entry that is furthest off, as [`compare`] measures it; `None` if there is no entry.
pub fn worst(expected: &[f64], bounds: &[f64], got: &[f64], dtype: Dtype) -> Option<Worst> {
    if expected.len() != got.len() {
        let index = expected.len().min(got.len());
        let at = |values: &[f64]| values.get(index).copied().unwrap_or(f64::NAN);
        let (expected, got) = (at(expected), at(got));
        return Some(Worst { index, expected, got, tolerance: 0.0, excess: f64::INFINITY });
    }
    // An entry without a bound has to be exact; none goes unseen.
    let bounds = bounds.iter().chain(std::iter::repeat(&0.0));
    let entries = expected.iter().zip(bounds).zip(got).enumerate();
    let judged = entries.map(|(index, ((&expected, &bound), &got))| {
        let tolerance = tolerance(bound, dtype);
        Worst { index, expected, got, tolerance, excess: excess(expected, got, tolerance) }
    });
    judged.max_by(|a, b| a.excess.total_cmp(&b.excess))
}

/// How far an entry with this bound may be off.
pub fn tolerance(bound: f64, dtype: Dtype) -> f64 {
    let allowed = 4.0 * dtype.unit_roundoff() * bound;
    if bound > 0.0 { allowed + dtype.smallest_normal() } else { 0.0 }
}

/// The error over the tolerance: above 1 is too far off.
fn excess(expected: f64, got: f64, tolerance: f64) -> f64 {
    if expected == got || (expected.is_nan() && got.is_nan()) {
        return 0.0;
    }
    let excess = (got - expected).abs() / tolerance;
    if excess.is_nan() { f64::INFINITY } else { excess }
}
