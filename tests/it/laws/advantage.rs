//! Laws of the advantages.

use grpo_oracle::Error;
use grpo_oracle::evaluate::{Question, evaluate};
use grpo_oracle::options::{
    Gpg, GroupNorm, GroupStd, LoneMember, MaskedReturn, Opo, PassAtKAdvantage, ReinforcePlusPlus,
    ReinforcePlusPlusBaseline, Rloo, StdScope,
};
use grpo_oracle::reference::{Bounded, advantage};
use ndarray::{Array1, Array2, array};
use serde_json::{Value, json};

use super::hold;

#[test]
fn leave_one_out_is_the_centred_reward_stretched() {
    fn law(rewards: Vec<i8>) -> bool {
        let (rewards, group) = one_group(&rewards);
        let n = rewards.len() as f64;
        let left_out = advantage::rloo(&rewards, &group, &Rloo::trl()).expect("advantages");
        let centred = advantage::relative(&rewards, &group).expect("relative rewards").relative;
        let nemo = GroupNorm { std: GroupStd::None, ..GroupNorm::nemo() };
        let nemo = advantage::group_norm(&rewards, &group, &nemo).expect("advantages");
        n < 2.0 || (close(&left_out, &(centred * (n / (n - 1.0)))) && close(&left_out, &nemo))
    }
    hold(law as fn(Vec<i8>) -> bool);
}

#[test]
fn relative_reward_and_baseline_make_up_the_reward() {
    fn law(rewards: Vec<(i8, u8)>) -> bool {
        let (rewards, group) = grouped(&rewards);
        let found = advantage::relative(&rewards, &group).expect("relative rewards");
        close(&(&found.relative + &found.baseline), &rewards) && found.relative.sum().abs() < 1e-11
    }
    hold(law as fn(Vec<(i8, u8)>) -> bool);
}

#[test]
fn a_group_that_is_the_batch_has_the_batchs_deviation() {
    fn law(rewards: Vec<i8>) -> bool {
        let (rewards, group) = one_group(&rewards);
        let of = |options| advantage::group_norm(&rewards, &group, &options).expect("advantages");
        of(GroupNorm::trl()) == of(GroupNorm::trl_batch())
    }
    hold(law as fn(Vec<i8>) -> bool);
}

#[test]
fn the_batchs_deviation_stretches_all_groups_alike() {
    fn law(rewards: Vec<(i8, u8)>) -> bool {
        let (rewards, group) = grouped(&rewards);
        let centred = GroupNorm { std: GroupStd::None, ..GroupNorm::trl() };
        let centred = advantage::group_norm(&rewards, &group, &centred).expect("advantages");
        let scaled = advantage::group_norm(&rewards, &group, &GroupNorm::trl_batch()).expect("advantages");
        let factors: Vec<f64> =
            centred.iter().zip(&scaled).filter(|(c, _)| c.abs() > 1e-9).map(|(c, s)| s / c).collect();
        factors.iter().all(|factor| (factor / factors[0] - 1.0).abs() < 1e-11)
    }
    hold(law as fn(Vec<(i8, u8)>) -> bool);
}

#[test]
fn constant_groups_get_zero_whatever_the_options() {
    fn law(reward: i16, size: u8) -> bool {
        let size = usize::from(size % 9) + 2;
        let rewards = Array1::from_elem(size, f64::from(reward) / 10.0);
        let group = Array1::zeros(size);
        let zero = Array1::<f64>::zeros(size);
        let norms = [
            GroupNorm::deepseek_math(),
            GroupNorm::verl(),
            GroupNorm::verl_vectorized_0_7(),
            GroupNorm::easyr1(),
            GroupNorm::easyr1_brian(),
            GroupNorm::trl(),
            GroupNorm::trl_batch(),
            GroupNorm::openrlhf(),
            GroupNorm::nemo(),
            GroupNorm::open_instruct(),
            GroupNorm::dr_grpo(),
        ];
        let gpg = advantage::gpg(&rewards, &group, &Gpg::verl()).expect("advantages");
        let opo = advantage::opo(&rewards, &group, &Array1::ones(size), &Opo::verl()).expect("advantages");
        let pass = PassAtKAdvantage { eps: 0.0, ..PassAtKAdvantage::verl() };
        let pass = advantage::pass_at_k(&rewards, &group, &pass).expect("advantages");
        let rloo = advantage::rloo(&rewards, &group, &Rloo::verl()).expect("advantages");
        norms.iter().all(|norm| advantage::group_norm(&rewards, &group, norm).expect("advantages") == zero)
            && [gpg, opo, pass, rloo].iter().all(|advantages| *advantages == zero)
    }
    hold(law as fn(i16, u8) -> bool);
}

#[test]
fn equal_lengths_make_opo_the_relative_reward() {
    fn law(rewards: Vec<(i8, u8)>, length: u8) -> bool {
        let (rewards, group) = grouped(&rewards);
        let lengths = Array1::from_elem(rewards.len(), f64::from(length) + 1.0);
        let opo = advantage::opo(&rewards, &group, &lengths, &Opo::paper()).expect("advantages");
        close(&opo, &advantage::relative(&rewards, &group).expect("relative rewards").relative)
    }
    hold(law as fn(Vec<(i8, u8)>, u8) -> bool);
}

#[test]
fn opo_sums_to_zero_over_the_tokens_of_a_group() {
    fn law(rewards: Vec<(i8, u8)>) -> bool {
        let lengths: Array1<f64> = rewards.iter().map(|&(_, length)| f64::from(length) + 1.0).collect();
        let (rewards, group) = one_group(&rewards.iter().map(|&(reward, _)| reward).collect::<Vec<_>>());
        let opo = advantage::opo(&rewards, &group, &lengths, &Opo::paper()).expect("advantages");
        (opo * lengths).sum().abs() < 1e-7
    }
    hold(law as fn(Vec<(i8, u8)>) -> bool);
}

#[test]
fn gpg_leaves_the_mean_size_of_a_gradient_as_if_no_group_were_constant() {
    let (rewards, group) = (array![1.0, 0.0, 0.0, 1.0], array![0, 0, 1, 1]);
    let plain = advantage::gpg(&rewards, &group, &Gpg::paper()).expect("advantages");
    // The same with as many samples again that agree: the mean over the batch stays.
    let (rewards, group) = (array![1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], array![0, 0, 1, 1, 2, 2, 2, 2]);
    let diluted = advantage::gpg(&rewards, &group, &Gpg::paper()).expect("advantages");
    let size = |advantages: &Array1<f64>| advantages.mapv(f64::abs).mean();
    assert_eq!(size(&plain), size(&diluted));
    // verl counts rewards that are not 0: with rewards of 1 and -1, all of them.
    let signed = advantage::gpg(&array![1.0, -1.0, -1.0, -1.0], &array![0, 0, 0, 0], &Gpg::verl());
    assert_eq!(signed.expect("advantages"), array![1.5, -0.5, -0.5, -0.5]);
}

#[test]
fn only_the_best_has_an_advantage_at_k() {
    fn law(rewards: Vec<i8>) -> bool {
        if rewards.len() < 2 {
            return true;
        }
        let (rewards, group) = one_group(&rewards);
        let lead = PassAtKAdvantage { std: GroupStd::None, ..PassAtKAdvantage::verl() };
        let advantages = advantage::pass_at_k(&rewards, &group, &lead).expect("advantages");
        // Taken down by its advantage, the best one is level with the second best.
        let mut level = &rewards - &advantages;
        level.as_slice_mut().expect("a row").sort_by(|a, b| b.total_cmp(a));
        (level[0] - level[1]).abs() < 1e-12 && advantages.iter().filter(|&&a| a != 0.0).count() <= 1
    }
    hold(law as fn(Vec<i8>) -> bool);
}

#[test]
fn returns_obey_the_recursion() {
    fn law(tokens: Vec<(i8, bool)>, discount: u8, reset: bool) -> bool {
        let gamma = f64::from(discount) / 255.0;
        let mask_mode = if reset { MaskedReturn::Reset } else { MaskedReturn::Carry };
        let rewards = Array2::from_shape_fn((1, tokens.len()), |(_, t)| f64::from(tokens[t].0));
        let mask = Array2::from_shape_fn((1, tokens.len()), |(_, t)| tokens[t].1);
        let mut options = ReinforcePlusPlus { gamma, mask_mode, ..ReinforcePlusPlus::verl() };
        options.whiten.whiten = false;
        let found = advantage::reinforce_plus_plus(&rewards, &mask, &options).expect("returns");
        let mut running = 0.0;
        (0..tokens.len()).rev().all(|t| {
            let got = found.returns[[0, t]];
            if !tokens[t].1 {
                running = if reset { 0.0 } else { running };
                return got == 0.0;
            }
            running = f64::from(tokens[t].0) + gamma * running;
            (got - running).abs() < 1e-9 && found.advantages[[0, t]] == got
        })
    }
    hold(law as fn(Vec<(i8, bool)>, u8, bool) -> bool);
}

#[test]
fn remax_with_a_baseline_of_zero_is_the_return() {
    fn law(tokens: Vec<(i8, bool)>, baseline: i8) -> bool {
        let rewards = Array2::from_shape_fn((1, tokens.len()), |(_, t)| f64::from(tokens[t].0));
        let mask = Array2::from_shape_fn((1, tokens.len()), |(_, t)| tokens[t].1);
        let of = |baseline: f64| advantage::remax(&rewards, &array![baseline], &mask).expect("advantages");
        let (plain, moved) = (of(0.0), of(f64::from(baseline)));
        let lowered = |((&return_, &advantage), &keep): ((&f64, &f64), &bool)| {
            advantage == if keep { return_ - f64::from(baseline) } else { 0.0 }
        };
        plain.advantages == plain.returns
            && moved.returns.iter().zip(&moved.advantages).zip(&mask).all(lowered)
    }
    hold(law as fn(Vec<(i8, bool)>, i8) -> bool);
}

#[test]
fn whitened_advantages_have_mean_zero_and_ignore_the_scale_of_rewards() {
    fn law(rewards: Vec<(i8, u8)>, scale: u8) -> bool {
        let lengths: Vec<usize> = rewards.iter().map(|&(_, seed)| usize::from(seed / 8 % 4)).collect();
        let mask = Array2::from_shape_fn((rewards.len(), 4), |(row, t)| t <= lengths[row]);
        let (rewards, group) = grouped(&rewards);
        let mut options =
            ReinforcePlusPlusBaseline { singleton: LoneMember::Zero, ..ReinforcePlusPlusBaseline::verl() };
        options.whiten.whiten_eps = 0.0;
        let of = |scale: f64| {
            advantage::reinforce_plus_plus_baseline(&(&rewards * scale), &group, &mask, &options)
        };
        match (of(1.0), of(f64::from(scale) + 1.0)) {
            (Ok(plain), Ok(scaled)) => {
                let same = plain.iter().zip(&scaled).all(|(a, b): (&f64, &f64)| (a - b).abs() < 1e-9);
                plain.sum().abs() < 1e-9 && same
            }
            (plain, scaled) => {
                let code = |answer: grpo_oracle::Result<Array2<f64>>| answer.err().map(|error| error.code());
                mask.iter().filter(|&&keep| keep).count() < 2 && code(plain) == code(scaled)
            }
        }
    }
    hold(law as fn(Vec<(i8, u8)>, u8) -> bool);
}

/// Numbers that others have published or that were run with their code.
#[test]
fn published_numbers_come_out() {
    let one_in_four = [1.0, 0.0, 0.0, 0.0];
    let of = |rewards: &[f64], options: GroupNorm| {
        let group = Array1::zeros(rewards.len());
        advantage::group_norm(&Array1::from(rewards.to_vec()), &group, &options).expect("advantages").to_vec()
    };
    let near = |got: Vec<f64>, expected: &[f64]| {
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 5e-5), "{got:?}, {expected:?}");
    };
    near(of(&one_in_four, GroupNorm::nemo()), &[1.0, -0.57735, -0.57735, -0.57735]);
    near(of(&one_in_four, GroupNorm::open_instruct()), &[1.7321, -0.5774, -0.5774, -0.5774]);
    near(of(&one_in_four, GroupNorm::verl()), &[1.5, -0.5, -0.5, -0.5]);
    near(of(&[0.0, 1e-4], GroupNorm::verl_vectorized_0_7()), &[-0.04995, 0.04995]);
    near(of(&[0.0, 1e-4], GroupNorm::verl()), &[-0.6972, 0.6972]);
    near(of(&[0.0, 5e-7], GroupNorm::easyr1_brian()), &[0.0, 0.0]);
    assert_eq!(
        of(&[1.0, 0.0], GroupNorm { std_scope: StdScope::LeaveOneOut, ..GroupNorm::eq28() }),
        [1.0, -1.0]
    );
}

fn one_group(rewards: &[i8]) -> (Array1<f64>, Array1<i64>) {
    (rewards.iter().map(|&reward| f64::from(reward) / 10.0).collect(), Array1::zeros(rewards.len()))
}

/// Rewards in up to three groups.
fn grouped(rewards: &[(i8, u8)]) -> (Array1<f64>, Array1<i64>) {
    let group = rewards.iter().map(|&(_, seed)| i64::from(seed % 3)).collect();
    (rewards.iter().map(|&(reward, _)| f64::from(reward) / 10.0).collect(), group)
}

fn close(left: &Array1<f64>, right: &Array1<f64>) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(a, b)| (a - b).abs() < 1e-11)
}

/// Returns that a computation makes equal, and not the rewards themselves, are whitened to 0 with a doubt.
#[test]
fn returns_that_rounding_may_have_made_equal_leave_a_doubt() {
    let margin = |rewards: Array2<f64>, mask: Array2<bool>| {
        let options = ReinforcePlusPlus { gamma: 0.5, ..ReinforcePlusPlus::verl() };
        let rewards = rewards.mapv(Bounded::exact);
        let found = advantage::reinforce_plus_plus(&rewards, &mask, &options).expect("advantages");
        assert!(found.advantages.iter().all(|advantage| advantage.value == 0.0));
        found.advantages[[0, 0]].margin
    };
    let summed = array![[0.5, 1.0], [1.0, 9.0]]; // 0.5 + 0.5 * 1, and 1
    assert_eq!(margin(summed, array![[true, true], [true, false]]), 0.0);
    assert_eq!(margin(array![[1.0, 9.0], [1.0, 9.0]], array![[true, false], [true, false]]), f64::INFINITY);
}

/// 0 and 0.0 are one label, 0 and "0" are two, also where numbers and texts stand beside each other.
#[test]
fn of_labels_only_the_equality_counts() {
    let answer = |labels: Value| {
        let inputs = json!({ "rewards": [1.0, 2.0, 3.0, 5.0], "group": labels });
        let question = Question::from_json("advantage.relative", &json!({ "inputs": inputs }))?;
        Ok::<_, Error>(evaluate("advantage.relative", &question)?.outputs["baseline"].reals().to_vec())
    };
    for labels in [json!([0, 0.0, 1, 1]), json!(["0", "0", 0, 0.0]), json!([0.0, 0, "", ""])] {
        assert_eq!(answer(labels), Ok(vec![1.5, 1.5, 4.0, 4.0]));
    }
    // Neighbours that are one number in double precision.
    let near = json!([9_007_199_254_740_993_i64, 9_007_199_254_740_993_i64, 9_007_199_254_740_992_i64, 0]);
    assert_eq!(answer(near), Ok(vec![1.5, 1.5, 3.0, 5.0]));
    for label in [json!(0.5), json!(true), json!(null), json!("NaN")] {
        let is_text = label.is_string();
        assert_eq!(answer(json!([0, 0, 1, label])).is_ok(), is_text);
    }
}
