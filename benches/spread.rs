//! The middle and the ends of what many runs gave.

use serde::{Deserialize, Serialize};

/// The middle and the ends of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them are no larger.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of no values at all everything is NaN.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Spread { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Spread { median, min, max }
    }

    /// Of each value divided by its neighbour in time.
    pub fn of_ratios(ours: impl IntoIterator<Item = f64>, theirs: impl IntoIterator<Item = f64>) -> Spread {
        Spread::of(ours.into_iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
    }
}

/// What a share of the values, which are in order, does not exceed; `None` of no values.
pub fn quantile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).median, 2.0);
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let check = |share, expected| assert_eq!(quantile(&[1, 2, 3, 4], share), Some(expected));
        check(0.0, 1);
        check(0.5, 2);
        check(0.51, 3);
        check(1.0, 4);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
