//! The exponential function in single precision, written so that a loop over it becomes vector instructions: no branch,
//! no table, no call.
//!
//! Within 1 unit in the last place of the exact value for every input (the test measures it), subnormal results
//! included; infinity above the largest finite result, 0 below the smallest, NaN for NaN. Without fused multiply-add, so
//! that every processor gives the same bits.

/// e to this power.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Beyond these the result is infinite and 0 anyway, and the exponent below stays a whole number that fits.
    let within = if x > 89.0 { 89.0 } else { x };
    let within = if within < -104.0 { -104.0 } else { within };

    // x = n ln 2 + r. Adding and taking off a number this large rounds n to a whole number, and leaves it in the low
    // bits as an integer.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let shifted = within * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let whole = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    // ln 2 in two parts, the first of so few bits that its products with n are exact.
    let r = (within - n * 0.693_359_4) - n * -2.121_944_4e-4;

    // exp(r) for |r| <= ln 2 / 2: the coefficients of Cephes' expf.
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let of_rest = p * (r * r) + r + 1.0;

    // Times 2^n in two steps: neither factor overflows, and only the last product can round, as a subnormal does.
    let half = whole >> 1;
    let result = of_rest * power_of_two(half) * power_of_two(whole.wrapping_sub(half));
    if x.is_nan() { x } else { result }
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::exp;

    /// The distance from the exact value in units of the last place of the single nearest to it.
    fn units_off(x: f32) -> f64 {
        let exact = f64::from(x).exp();
        let nearest = exact as f32;
        let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(exp(x)) - exact).abs() / unit
    }

    #[test]
    fn it_is_right_to_the_last_place() {
        let (mut worst, mut at) = (0.0, 0.0);
        // Every 257th single between the one whose exponential rounds to 0 and the last whose is finite.
        for sign in [0_u32, 1 << 31] {
            for bits in (0..f32::INFINITY.to_bits()).step_by(257) {
                let x = f32::from_bits(bits | sign);
                if (-103.9..88.722_83).contains(&x) && units_off(x) > worst {
                    (worst, at) = (units_off(x), x);
                }
            }
        }
        println!("furthest off at {at}: {worst:.3} units in the last place");
        assert!(worst < 1.0, "at {at} it is off by {worst} units in the last place");
    }

    #[test]
    fn its_ends_are_right() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(1e-30), 1.0);
        // The last input with a finite result, and the next one.
        let last = 88.722_83_f32;
        assert!(f64::from(last).exp() < f64::from(f32::MAX) && exp(last).is_finite());
        assert_eq!(exp(f32::from_bits(last.to_bits() + 1)), f32::INFINITY);
        // The smallest number there is, and below its half.
        assert_eq!(exp(-103.27), f32::from_bits(1));
        assert_eq!(exp(-103.98), 0.0);
    }
}
