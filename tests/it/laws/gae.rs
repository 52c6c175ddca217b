//! Laws of temporal differences and GAE.

use grpo_oracle::options::{Gae, GaeMaskMode, TdError};
use grpo_oracle::reference::gae::{gae, td_error};
use ndarray::Array2;

use super::{Unit, hold};

/// A token: reward, value, whether it is kept.
type Token = (Unit, Unit, bool);

/// One row of rewards, values and mask, with NaN in masked slots.
fn row(tokens: &[Token]) -> (Array2<f64>, Array2<f64>, Array2<bool>) {
    let at = |of: fn(&Token) -> f64| {
        let entry = |token: &Token| if token.2 { of(token) } else { f64::NAN };
        Array2::from_shape_fn((1, tokens.len()), |(_, t)| entry(&tokens[t]))
    };
    let mask = Array2::from_shape_fn((1, tokens.len()), |(_, t)| tokens[t].2);
    (at(|token| token.0.0), at(|token| token.1.0), mask)
}

fn of(tokens: &[Token], options: &Gae) -> (Vec<f64>, Vec<f64>) {
    let (rewards, values, mask) = row(tokens);
    let output = gae(&rewards, &values, &mask, options).expect("advantages");
    let kept = |array: Array2<f64>| {
        array.into_iter().zip(&mask).filter(|(_, keep)| **keep).map(|(x, _)| x).collect()
    };
    (kept(output.advantages), kept(output.returns))
}

fn near(left: &[f64], right: &[f64]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(a, b)| (a - b).abs() < 1e-12)
}

fn options(gamma: Unit, lam: Unit, mask_mode: GaeMaskMode) -> Gae {
    let gae = Gae::eq16(gamma.0.abs(), lam.0.abs());
    Gae { td_error: TdError { mask_mode, ..gae.td_error }, ..gae }
}

#[test]
fn without_decay_the_advantage_is_what_is_to_come_minus_the_value() {
    fn law(tokens: Vec<Token>) -> bool {
        let kept: Vec<&Token> = tokens.iter().filter(|token| token.2).collect();
        let to_come = |t: usize| kept[t..].iter().map(|token| token.0.0).sum::<f64>();
        let expected: Vec<f64> = (0..kept.len()).map(|t| to_come(t) - kept[t].1.0).collect();
        near(&of(&tokens, &Gae::eq16(1.0, 1.0)).0, &expected)
    }
    hold(law as fn(Vec<Token>) -> bool);
}

#[test]
fn masked_slots_that_are_carried_over_might_as_well_not_be_there() {
    fn law(tokens: Vec<Token>, gamma: Unit, lam: Unit) -> bool {
        let options = options(gamma, lam, GaeMaskMode::Carry);
        let compact: Vec<Token> = tokens.iter().copied().filter(|token| token.2).collect();
        of(&tokens, &options) == of(&compact, &options)
    }
    hold(law as fn(Vec<Token>, Unit, Unit) -> bool);
}

#[test]
fn masked_slots_that_are_steps_are_tokens_without_reward_and_value() {
    fn law(tokens: Vec<Token>, gamma: Unit, lam: Unit) -> bool {
        let of_token = |&token: &Token| if token.2 { token } else { (Unit(0.0), Unit(0.0), true) };
        let filled: Vec<Token> = tokens.iter().map(of_token).collect();
        let all = of(&filled, &options(gamma, lam, GaeMaskMode::Carry)).0;
        let kept: Vec<f64> =
            all.into_iter().zip(&tokens).filter(|(_, token)| token.2).map(|(a, _)| a).collect();
        near(&of(&tokens, &options(gamma, lam, GaeMaskMode::None)).0, &kept)
    }
    hold(law as fn(Vec<Token>, Unit, Unit) -> bool);
}

#[test]
fn padding_makes_no_difference_between_the_mask_modes() {
    fn law(tokens: Vec<Token>, gamma: Unit, lam: Unit, padding: u8) -> bool {
        let mut tokens: Vec<Token> = tokens.into_iter().map(|(r, v, _)| (r, v, true)).collect();
        tokens.extend((0..padding % 4).map(|_| (Unit(1.0), Unit(1.0), false)));
        let [carried, stepped] =
            [GaeMaskMode::Carry, GaeMaskMode::None].map(|mode| of(&tokens, &options(gamma, lam, mode)));
        carried == stepped
    }
    hold(law as fn(Vec<Token>, Unit, Unit, u8) -> bool);
}

/// R_t = r_t + gamma ((1 - lam) V_next + lam R_next): the returns are those of TD(lambda).
#[test]
fn returns_mix_the_next_value_with_the_next_return() {
    fn law(tokens: Vec<Token>, gamma: Unit, lam: Unit) -> bool {
        let options = options(gamma, lam, GaeMaskMode::Carry);
        let (gamma, lam) = (options.td_error.gamma, options.lam);
        let kept: Vec<&Token> = tokens.iter().filter(|token| token.2).collect();
        let returns = of(&tokens, &options).1;
        let expected: Vec<f64> = (0..kept.len())
            .map(|t| {
                let (value, later) = kept.get(t + 1).map_or((0.0, 0.0), |next| (next.1.0, returns[t + 1]));
                kept[t].0.0 + gamma * ((1.0 - lam) * value + lam * later)
            })
            .collect();
        near(&returns, &expected)
    }
    hold(law as fn(Vec<Token>, Unit, Unit) -> bool);
}

#[test]
fn the_temporal_difference_is_gae_without_memory() {
    fn law(tokens: Vec<Token>, gamma: Unit, none: bool) -> bool {
        let mode = if none { GaeMaskMode::None } else { GaeMaskMode::Carry };
        let options = options(gamma, Unit(0.0), mode);
        let (rewards, values, mask) = row(&tokens);
        let one_step = td_error(&rewards, &values, &mask, &options.td_error).expect("differences");
        one_step == gae(&rewards, &values, &mask, &options).expect("advantages").advantages
    }
    hold(law as fn(Vec<Token>, Unit, bool) -> bool);
}

#[test]
fn whitening_leaves_the_returns_alone() {
    fn law(tokens: Vec<Token>) -> bool {
        let plain = of(&tokens, &Gae::eq16(1.0, 1.0));
        if plain.0.len() < 2 {
            return true;
        }
        let mut without_eps = Gae::verl();
        without_eps.whiten.whiten_eps = 0.0;
        let whitened = of(&tokens, &without_eps);
        let count = plain.0.len() as f64;
        let (sum, squares) =
            whitened.0.iter().fold((0.0, 0.0), |(sum, squares), a| (sum + a, squares + a * a));
        let is_constant = plain.0.iter().all(|a| (a - plain.0[0]).abs() < 1e-6);
        whitened.1 == plain.1 && (is_constant || (sum.abs() < 1e-6 && (squares - count + 1.0).abs() < 1e-6))
    }
    hold(law as fn(Vec<Token>) -> bool);
}
