//! What a row of the report claims, and whether measured pairs bear it out.
//!
//! Decides how two samples become one figure, and when a floor is met: the median must reach it. It
//! is *missed* only when the whole interval stays on the wrong side; between the two the machine
//! could not tell. Pure. The rows themselves stand in `rows`.

use std::collections::BTreeMap;

use super::{
    scenario::Scenario,
    statistics::{Estimate, estimate},
};

/// Named figures of one run of one server.
pub type Figures = BTreeMap<String, f64>;

/// One line of the table of floors.
#[derive(Debug)]
pub struct Row {
    /// What `--rows` names it.
    pub id: &'static str,
    /// What is measured.
    pub title: &'static str,
    /// In which server life it is measured.
    pub scenario: Scenario,
    /// Whether `make bench` has it; `make bench-full` has all.
    pub set: Set,
    /// What is claimed.
    pub criteria: &'static [Criterion],
}

/// Who runs a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// `make bench` and `make bench-full`.
    Headline,
    /// `make bench-full` only.
    Full,
}

/// One claim of a row.
#[derive(Debug)]
pub struct Criterion {
    /// What it is about, such as `CPU`.
    pub what: &'static str,
    /// How it is computed.
    pub measure: Measure,
    /// What must be reached to claim a lead.
    pub floor: Bound,
    /// What is hoped for.
    pub goal: Option<f64>,
}

/// How a pair of samples becomes one figure. Names are keys of [`Figures`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// A cost: how many times less ours is than etcd's.
    Less(&'static str),
    /// A yield: how many times more ours is than etcd's.
    More(&'static str),
    /// A figure of ours alone.
    Ours(&'static str),
    /// The quotient of two figures of ours.
    OursOver(&'static str, &'static str),
}

/// A limit, and the side of it that is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The figure must be this or more.
    AtLeast(f64),
    /// The figure must be this or less.
    AtMost(f64),
}

/// The figures of both servers from one pair of runs. Without a second server, ours alone.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    /// Official etcd's.
    pub official: Figures,
    /// oxetcd's.
    pub ours: Figures,
}

/// How a claim came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median is at the goal or beyond.
    Goal,
    /// The median is at the floor or beyond.
    Met,
    /// The median is short of the floor, but the interval reaches it.
    Unclear,
    /// The whole interval is short of the floor.
    Missed,
    /// Nothing was measured.
    NotRun,
}

impl Verdict {
    /// The word in reports.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Goal => "goal met",
            Self::Met => "met",
            Self::Unclear => "unclear",
            Self::Missed => "MISSED",
            Self::NotRun => "not run",
        }
    }
}

impl Measure {
    /// The figure of one pair; `None` where a part was not measured.
    #[must_use]
    pub fn of(self, pair: &Pair) -> Option<f64> {
        let official = |name| pair.official.get(name).copied();
        let ours = |name| pair.ours.get(name).copied();
        let figure = match self {
            Self::Less(name) => official(name)? / ours(name)?,
            Self::More(name) => ours(name)? / official(name)?,
            Self::Ours(name) => ours(name)?,
            Self::OursOver(above, below) => ours(above)? / ours(below)?,
        };
        figure.is_finite().then_some(figure)
    }

    /// Whether it compares with official etcd.
    #[must_use]
    pub const fn is_ratio(self) -> bool {
        matches!(self, Self::Less(_) | Self::More(_))
    }
}

impl Bound {
    /// The number.
    #[must_use]
    pub const fn value(self) -> f64 {
        match self {
            Self::AtLeast(value) | Self::AtMost(value) => value,
        }
    }

    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => least <= figure,
            Self::AtMost(most) => figure <= most,
        }
    }

    /// The same side of another number.
    const fn at(self, value: f64) -> Self {
        match self {
            Self::AtLeast(_) => Self::AtLeast(value),
            Self::AtMost(_) => Self::AtMost(value),
        }
    }

    /// The end of an interval that is on the good side.
    const fn best(self, estimate: &Estimate) -> f64 {
        match self {
            Self::AtLeast(_) => estimate.high,
            Self::AtMost(_) => estimate.low,
        }
    }
}

impl Row {
    /// Whether a pair has a figure for every claim.
    #[must_use]
    pub fn is_complete(&self, pair: &Pair) -> bool {
        self.criteria.iter().all(|criterion| criterion.measure.of(pair).is_some())
    }
}

impl Criterion {
    /// The figures of all pairs that have one.
    #[must_use]
    pub fn figures(&self, pairs: &[Pair]) -> Vec<f64> {
        pairs.iter().filter_map(|pair| self.measure.of(pair)).collect()
    }

    /// The median over all pairs with its interval.
    #[must_use]
    pub fn estimate(&self, pairs: &[Pair], seed: u64) -> Option<Estimate> {
        estimate(&self.figures(pairs), seed)
    }

    /// How the claim came out.
    #[must_use]
    pub fn verdict(&self, estimate: Option<&Estimate>) -> Verdict {
        let Some(estimate) = estimate else { return Verdict::NotRun };
        let goal = self.goal.map(|goal| self.floor.at(goal));
        if goal.is_some_and(|goal| goal.holds(estimate.median)) {
            Verdict::Goal
        } else if self.floor.holds(estimate.median) {
            Verdict::Met
        } else if self.floor.holds(self.floor.best(estimate)) {
            Verdict::Unclear
        } else {
            Verdict::Missed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, Criterion, Measure, Pair, Verdict};

    fn pair(official: f64, ours: f64) -> Pair {
        Pair {
            official: [("cpu".to_owned(), official)].into(),
            ours: [("cpu".to_owned(), ours), ("quiet".to_owned(), 2.0)].into(),
        }
    }

    fn verdict(measure: Measure, floor: Bound, goal: f64, pairs: &[Pair]) -> Verdict {
        let criterion = Criterion { what: "CPU", measure, floor, goal: Some(goal) };
        criterion.verdict(criterion.estimate(pairs, 1).as_ref())
    }

    #[test]
    fn ratios_are_in_our_favour_when_above_one() {
        let pair = pair(8.0, 2.0);
        assert_eq!(Measure::Less("cpu").of(&pair), Some(4.0));
        assert_eq!(Measure::More("cpu").of(&pair), Some(0.25));
        assert_eq!(Measure::Ours("cpu").of(&pair), Some(2.0));
        assert_eq!(Measure::OursOver("cpu", "quiet").of(&pair), Some(1.0));
        assert_eq!(Measure::Less("absent").of(&pair), None);
    }

    #[test]
    fn floor_is_missed_only_when_the_whole_interval_is_short_of_it() {
        let pairs = [pair(8.0, 2.0), pair(8.2, 2.0), pair(7.8, 2.0)];
        let less = Measure::Less("cpu");
        assert_eq!(verdict(less, Bound::AtLeast(3.0), 4.0, &pairs), Verdict::Goal);
        assert_eq!(verdict(less, Bound::AtLeast(3.0), 9.0, &pairs), Verdict::Met);
        assert_eq!(verdict(less, Bound::AtLeast(4.05), 9.0, &pairs), Verdict::Unclear);
        assert_eq!(verdict(less, Bound::AtLeast(5.0), 9.0, &pairs), Verdict::Missed);
        assert_eq!(verdict(less, Bound::AtLeast(5.0), 9.0, &[]), Verdict::NotRun);
        let ours = Measure::Ours("cpu");
        assert_eq!(verdict(ours, Bound::AtMost(2.0), 1.0, &pairs), Verdict::Met);
        assert_eq!(verdict(ours, Bound::AtMost(1.0), 0.5, &pairs), Verdict::Missed);
    }
}
