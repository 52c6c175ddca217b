//! Single precision with its sums in several orders: what honest implementations do.

use std::ops::{Add, Div, Mul, Neg, Sub};

use grpo_oracle::reference::Real;

/// From the first term to the last, as a plain loop does.
pub(crate) const FORWARD: u8 = 0;
/// From the last term to the first.
pub(crate) const BACKWARD: u8 = 1;
/// Halves of halves, as numpy does.
pub(crate) const PAIRWISE: u8 = 2;
/// Four sums side by side, as vector units do.
pub(crate) const STRIDED: u8 = 3;

/// An `f32` whose sums are taken in one of the orders.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Single<const ORDER: u8>(pub(crate) f32);

fn pairwise(terms: &[f32]) -> f32 {
    match terms {
        [] => 0.0,
        [term] => *term,
        _ => {
            let (left, right) = terms.split_at(terms.len() / 2);
            pairwise(left) + pairwise(right)
        }
    }
}

impl<const ORDER: u8> Real for Single<ORDER> {
    fn constant(value: f64) -> Self {
        Self(value as f32)
    }
    fn value(self) -> f64 {
        f64::from(self.0)
    }
    fn exp(self) -> Self {
        Self(self.0.exp())
    }
    fn ln(self) -> Self {
        Self(self.0.ln())
    }
    fn cos(self) -> Self {
        Self(self.0.cos())
    }
    fn sqrt(self) -> Self {
        Self(self.0.sqrt())
    }
    fn abs(self) -> Self {
        Self(self.0.abs())
    }
    fn min(self, other: Self) -> Self {
        Self(Real::min(self.0, other.0))
    }
    fn max(self, other: Self) -> Self {
        Self(Real::max(self.0, other.0))
    }
    fn sum(terms: impl IntoIterator<Item = Self>) -> Self {
        let terms: Vec<f32> = terms.into_iter().map(|term| term.0).collect();
        Self(match ORDER {
            FORWARD => terms.iter().sum(),
            BACKWARD => terms.iter().rev().sum(),
            PAIRWISE => pairwise(&terms),
            _ => (0..4).map(|lane| terms.iter().skip(lane).step_by(4).sum::<f32>()).sum(),
        })
    }
}

impl<const ORDER: u8> Add for Single<ORDER> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl<const ORDER: u8> Sub for Single<ORDER> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl<const ORDER: u8> Mul for Single<ORDER> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0)
    }
}

impl<const ORDER: u8> Div for Single<ORDER> {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        Self(self.0 / other.0)
    }
}

impl<const ORDER: u8> Neg for Single<ORDER> {
    type Output = Self;
    fn neg(self) -> Self {
        Self(-self.0)
    }
}
