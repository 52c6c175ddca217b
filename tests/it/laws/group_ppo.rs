//! Laws of GROUP-PPO.

use grpo_oracle::options::{EndpointReturn, GroupPpo};
use grpo_oracle::reference::group_ppo::{GroupPpoOutput, group_ppo};
use ndarray::Array2;

use super::{Unit, hold};

/// A token: reward, value, log-ratio, whether it is kept.
type Token = (Unit, Unit, Unit, bool);

fn of(rows: &[Vec<Token>], options: &GroupPpo) -> GroupPpoOutput<f64> {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let token = |(row, t): (usize, usize)| rows[row].get(t).copied().filter(|token| token.3);
    let array = |of: fn(Token) -> f64| {
        Array2::from_shape_fn((rows.len(), width), |at| token(at).map_or(f64::NAN, of))
    };
    let mask = Array2::from_shape_fn((rows.len(), width), |at| token(at).is_some());
    let (rewards, values) = (array(|token| token.0.0), array(|token| token.1.0));
    let (logp, logp_old) = (array(|token| token.2.0), array(|_| 0.0));
    group_ppo(&rewards, &values, &logp, &logp_old, &mask, options).expect("endpoints")
}

fn uniform(rows: usize, length: usize, advantage: f64, drift: f64) -> Vec<Vec<Token>> {
    vec![vec![(Unit(advantage), Unit(0.0), Unit(drift), true); length]; rows]
}

fn both() -> [GroupPpo; 2] {
    [GroupPpo { group_max_size: None, ..GroupPpo::algorithm2() }, GroupPpo::published()]
}

#[test]
fn on_policy_only_the_last_token_is_an_endpoint() {
    for options in both() {
        let output = of(&uniform(3, 20, 0.5, 0.0), &options);
        assert_eq!(output.metrics.total_endpoints, 3.0);
        assert_eq!(output.endpoints.column(19).sum(), 3.0);
    }
}

#[test]
fn with_one_advantage_and_one_drift_every_token_is_an_endpoint() {
    for options in both() {
        let output = of(&uniform(2, 20, 0.5, 0.01), &options);
        assert_eq!(output.metrics.total_endpoints, 40.0);
        assert_eq!(output.metrics.sparse, 0.0);
    }
}

/// The numbers of `001_group_ppo.md`: they are those of the largest size alone.
#[test]
fn runs_of_sixteen_alone_compress_to_a_sixteenth() {
    let output = of(&uniform(16, 512, 0.5, 0.0), &GroupPpo::algorithm2());
    let metrics = output.metrics;
    assert_eq!(metrics.total_endpoints, 512.0);
    assert_eq!((metrics.compression_ratio, metrics.efficiency_gain, metrics.sparse), (0.9375, 16.0, 1.0));
    assert!((metrics.algorithm_effectiveness - 0.8375 / 0.9).abs() < 1e-15);
    assert_eq!(output.threshold, 1.0);
}

/// What no bootstrapping does to the endpoint in the middle.
#[test]
fn an_endpoint_within_a_response_is_pushed_down_by_its_value() {
    let mut row = vec![(Unit(0.0), Unit(0.5), Unit(0.0), true); 32];
    row[31].0 = Unit(1.0);
    let advantages = |endpoint_return| {
        let output = of(&[row.clone()], &GroupPpo { endpoint_return, ..GroupPpo::algorithm2() });
        (output.advantages[[0, 15]], output.advantages[[0, 31]], output.advantages.sum())
    };
    assert_eq!(advantages(EndpointReturn::Segment), (-0.5, 0.5, 0.0));
    assert_eq!(advantages(EndpointReturn::Prefix), (-0.5, 0.5, 0.0));
    assert_eq!(advantages(EndpointReturn::Gae), (0.5, 0.5, 1.0));
}

fn options(threshold: Unit, size: u8, minus_one: bool, eps: bool) -> GroupPpo {
    let base = if minus_one { GroupPpo::published() } else { GroupPpo::algorithm2() };
    GroupPpo {
        group_variance_threshold: 8.0 * threshold.0.abs() + 0.01,
        group_max_size: (size % 8 >= 2).then_some(u64::from(size % 8)),
        group_epsilon: if eps { 0.01 } else { 0.0 },
        adaptive_threshold: true,
        endpoint_return: EndpointReturn::Segment,
        ..base
    }
}

#[test]
fn runs_cover_the_response_and_end_at_its_last_token() {
    fn law(rows: Vec<Vec<Token>>, threshold: Unit, size: u8, minus_one: bool, eps: bool) -> bool {
        let options = options(threshold, size, minus_one, eps);
        let output = of(&rows, &options);
        rows.iter().enumerate().all(|(row, tokens)| {
            let kept: Vec<usize> = (0..tokens.len()).filter(|&t| tokens[t].3).collect();
            let is_endpoint = |t: usize| output.endpoints[[row, t]] == 1.0;
            let total: f64 = kept.iter().map(|&t| tokens[t].0.0).sum();
            let returned: f64 =
                kept.iter().filter(|&&t| is_endpoint(t)).map(|&t| output.returns[[row, t]]).sum();
            let longest = kept.split_inclusive(|&t| is_endpoint(t)).map(<[usize]>::len).max();
            (returned - total).abs() < 1e-12
                && kept.last().is_none_or(|&last| is_endpoint(last))
                && options.group_max_size.is_none_or(|size| longest.unwrap_or(0) as u64 <= size)
                && kept.iter().all(|&t| is_endpoint(t) || output.returns[[row, t]] == tokens[t].1.0)
                && (0..tokens.len()).all(|t| is_endpoint(t) || output.advantages[[row, t]] == 0.0)
        })
    }
    hold(law as fn(Vec<Vec<Token>>, Unit, u8, bool, bool) -> bool);
}

#[test]
fn masked_slots_might_as_well_not_be_there() {
    fn law(rows: Vec<Vec<Token>>, threshold: Unit, size: u8, minus_one: bool, eps: bool) -> bool {
        let options = options(threshold, size, minus_one, eps);
        let compact: Vec<Vec<Token>> =
            rows.iter().map(|row| row.iter().copied().filter(|token| token.3).collect()).collect();
        let (gaps, compacted) = (of(&rows, &options), of(&compact, &options));
        let same = rows.iter().enumerate().all(|(row, tokens)| {
            let kept = (0..tokens.len()).filter(|&t| tokens[t].3).enumerate();
            kept.into_iter().all(|(index, t)| {
                gaps.endpoints[[row, t]] == compacted.endpoints[[row, index]]
                    && gaps.advantages[[row, t]] == compacted.advantages[[row, index]]
            })
        });
        same && gaps.threshold == compacted.threshold && gaps.metrics == compacted.metrics
    }
    hold(law as fn(Vec<Vec<Token>>, Unit, u8, bool, bool) -> bool);
}

/// A score that is below the gate or a threshold out of reach leaves the size and the end.
#[test]
fn what_no_score_closes_the_size_does() {
    fn law(row: Vec<(Unit, Unit, Unit)>, size: u8) -> bool {
        let size = usize::from(size % 7) + 2;
        let options = GroupPpo {
            group_gate: 1e6,
            group_max_size: Some(size as u64),
            threshold_lr: 1.0,
            ..GroupPpo::algorithm2()
        };
        let row: Vec<Token> = row.into_iter().map(|(r, v, d)| (r, v, d, true)).collect();
        let count = row.len();
        let output = of(&[row], &options);
        output
            .endpoints
            .iter()
            .enumerate()
            .all(|(t, &endpoint)| (endpoint == 1.0) == ((t + 1) % size == 0 || t + 1 == count))
            && output.threshold == 1.0
    }
    hold(law as fn(Vec<(Unit, Unit, Unit)>, u8) -> bool);
}
