//! Outlier: what sets an endpoint apart from its peers, and how many may be left out.
//!
//! **Apart** is a share of failures of more than `factor` times the median of its peers'
//! and `margin_percent` points on top. The median rather than mean and deviation: one dead
//! endpoint of five shifts both so far that a second one is never found, while a median
//! holds until half of the peers are bad. The endpoint itself is not among its peers, and
//! of an even number of them the higher of the two in the middle counts: in doubt it stays.
//! Two peers with enough traffic are the least: of two endpoints none can be told to be the
//! odd one.
//!
//! **How many**: a share of the pool rounded down, but one of two or three, and never the
//! last one. A cap that rounds to none protects nobody (Envoy's 10 % ejects nothing below
//! ten endpoints); one that allows all of them turns a shared dependency's outage into ours.
//!
//! # Sources
//!
//! - Envoy, *Outlier detection*: relative rules, volume, the cap.

use super::Mode;

/// What sets an endpoint apart, and how many may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the relative rule does; the caps hold in any mode.
    pub mode: Mode,
    /// An endpoint is left out when its share of failures is more than this many times the
    /// median of its peers' …
    pub factor: u32,
    /// … and these points of a percent on top.
    pub margin_percent: u32,
    /// A share of fewer requests than this in the breaker's window says nothing.
    pub min_requests: u32,
    /// At most this share of a pool is left out, `0..=100`, rounded down, but at least one
    /// endpoint of two or more; none at 0.
    pub max_ejected_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            factor: 5,
            margin_percent: 10,
            min_requests: 20,
            max_ejected_percent: 50,
        }
    }
}

/// How many endpoints of a pool of `n` may be left out at once.
pub fn max_ejected(config: &Config, n: usize) -> usize {
    let percent = u64::from(config.max_ejected_percent.min(100));
    if n < 2 || percent == 0 {
        return 0;
    }
    let share = u128::from(percent) * n as u128 / 100;
    usize::try_from(share).unwrap_or(n).clamp(1, n - 1)
}

/// Whether an endpoint is much worse than its peers, each given as how many requests failed
/// and of how many.
///
/// Takes time in their number and no memory: the median is below a bound exactly when more
/// than half of them are.
pub fn is_outlier(
    config: &Config,
    own: (u32, u32),
    peers: impl IntoIterator<Item = (u32, u32)>,
) -> bool {
    if own.1 < config.min_requests.max(1) {
        return false;
    }
    let (mut counted, mut better) = (0_usize, 0_usize);
    for peer in peers.into_iter().filter(|it| config.min_requests.max(1) <= it.1) {
        counted += 1;
        better += usize::from(is_much_worse(config, own, peer));
    }
    2 <= counted && counted < 2 * better
}

/// Whether `a / b > factor × c / d + margin`, in integers, for `own = (a, b)`, `peer = (c, d)`.
fn is_much_worse(config: &Config, own: (u32, u32), peer: (u32, u32)) -> bool {
    let [a, b, c, d] = [own.0, own.1, peer.0, peer.1].map(u128::from);
    let (factor, margin) = (u128::from(config.factor), u128::from(config.margin_percent));
    100 * factor * c * b + margin * b * d < 100 * a * d
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_one_at_60_among_99_98_99_97_is_the_outlier() {
        let pool: Vec<_> = [99, 98, 99, 97, 60].map(|it| (100 - it, 100)).into();
        assert_eq!(outliers(&pool), [4]);
    }

    #[test]
    fn two_bad_ones_of_eight_are_found_where_a_deviation_finds_none() {
        let pool: Vec<_> = [99, 98, 99, 97, 99, 98, 40, 30].map(|it| (100 - it, 100)).into();
        assert_eq!(outliers(&pool), [6, 7]);
    }

    #[test]
    fn it_takes_more_than_factor_and_margin() {
        let peers = [(2, 100), (2, 100), (2, 100)];
        assert!(!is_outlier(&Config::default(), (20, 100), peers));
        assert!(is_outlier(&Config::default(), (21, 100), peers));
        assert!(is_outlier(&Config::default(), (201, 1_000), peers));
    }

    #[test]
    fn it_takes_two_peers_with_enough_traffic() {
        let good = (0, 20);
        assert!(is_outlier(&Config::default(), (20, 20), [good, good]));
        assert!(!is_outlier(&Config::default(), (20, 20), [good]));
        assert!(!is_outlier(&Config::default(), (20, 20), [good, (0, 19)]));
        assert!(!is_outlier(&Config::default(), (19, 19), [good, good]));
    }

    #[test]
    fn of_an_even_number_the_higher_of_the_middle_counts() {
        let (good, bad) = ((0, 100), (50, 100));
        assert!(!is_outlier(&Config::default(), (60, 100), [good, good, bad, bad]));
        assert!(is_outlier(&Config::default(), (60, 100), [good, good, good, bad, bad]));
    }

    #[test]
    fn no_traffic_is_no_outlier_whatever_the_least_volume() {
        let config = Config { min_requests: 0, ..Config::default() };
        assert!(!is_outlier(&config, (0, 0), [(0, 0), (0, 0)]));
        assert!(!is_outlier(&config, (5, 5), [(0, 0), (0, 0)]));
    }

    #[test]
    fn half_of_a_pool_may_be_left_out_and_never_the_last() {
        let most = [0, 1, 2, 3, 4, 5, 10, 1_001].map(|n| max_ejected(&Config::default(), n));
        assert_eq!(most, [0, 0, 1, 1, 2, 2, 5, 500]);
    }

    #[test]
    fn a_share_that_rounds_to_none_leaves_one_out_but_no_share_none() {
        let at = |percent, n| {
            max_ejected(&Config { max_ejected_percent: percent, ..Config::default() }, n)
        };
        assert_eq!([at(10, 9), at(10, 10), at(10, 20)], [1, 1, 2]);
        assert_eq!([at(100, 1), at(100, 2), at(100, 5), at(1_000, 5)], [0, 1, 4, 4]);
        assert_eq!([at(0, 2), at(0, 100)], [0, 0]);
    }

    proptest! {
        /// Against a median that is sorted for.
        #[test]
        fn it_compares_with_the_median(
            own in (0_u32..=100, Just(100_u32)),
            peers in vec((0_u32..=20, Just(20_u32)), 2..9),
            factor in 0_u32..6,
            margin_percent in 0_u32..30,
        ) {
            let config = Config { factor, margin_percent, ..Config::default() };
            let mut percents: Vec<_> = peers.iter().map(|it| it.0 * 100 / it.1).collect();
            percents.sort_unstable();
            let bound = factor * percents[percents.len() / 2] + margin_percent;
            prop_assert_eq!(is_outlier(&config, own, peers), own.0 > bound);
        }
    }

    fn outliers(pool: &[(u32, u32)]) -> Vec<usize> {
        let others = |at| pool.iter().enumerate().filter(move |it| it.0 != at).map(|it| *it.1);
        let found =
            (0..pool.len()).filter(|at| is_outlier(&Config::default(), pool[*at], others(*at)));
        found.collect()
    }
}
