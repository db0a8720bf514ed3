//! Claims held against results.

use std::collections::BTreeSet;

use serde::Serialize;

use super::config::{Claim, Labels, Selector, Test};
use super::report::Row;
use super::statistics::pooled;

/// What the results say about a claim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The claim in words.
    pub text: String,
    /// One finding for each combination of the labels that it is tested over.
    pub findings: Vec<Finding>,
}

/// What the results say in one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The labels of the case; empty for a claim with one case.
    pub case: String,
    /// Whether the claim holds; none if there are no results for it.
    pub holds: Option<bool>,
    /// The figures.
    pub detail: String,
}

impl Verdict {
    /// Holds the results against a claim.
    pub fn of(claim: &Claim, rows: &[Row]) -> Self {
        let cases: BTreeSet<Labels> = rows
            .iter()
            .filter(|row| claim.test.selectors().iter().any(|one| one.fits(&row.labels)))
            .map(|row| {
                let own = |name: &String| Some((name.clone(), row.labels.get(name)?.clone()));
                claim.over.iter().filter_map(own).collect()
            })
            .filter(|case: &Labels| case.len() == claim.over.len())
            .collect();
        let finding = |case: &Labels| {
            let within = |row: &&Row| case.iter().all(|(k, v)| row.labels.get(k) == Some(v));
            let rows: Vec<&Row> = rows.iter().filter(within).collect();
            let (holds, detail) = test(&claim.test, &rows);
            let words: Vec<_> = claim.over.iter().filter_map(|name| case.get(name)).collect();
            let words: Vec<_> = words.into_iter().map(String::as_str).collect();
            Finding { case: words.join(", "), holds, detail }
        };
        Self { text: claim.text.clone(), findings: cases.iter().map(finding).collect() }
    }

    /// `holds`, `does not hold`, `holds in 3 of 4 cases`, `not covered`.
    pub fn summary(&self) -> String {
        let known: Vec<bool> = self.findings.iter().filter_map(|finding| finding.holds).collect();
        match (known.iter().filter(|holds| **holds).count(), known.len()) {
            (_, 0) => "not covered".into(),
            (holds, all) if holds == all => "holds".into(),
            (0, _) => "does not hold".into(),
            (holds, all) => format!("holds in {holds} of {all} cases"),
        }
    }
}

impl Test {
    fn selectors(&self) -> Vec<&Selector> {
        match self {
            Self::Equal { left, right }
            | Self::Worse { left, right }
            | Self::NotWorse { left, right } => vec![left, right],
            Self::Steady { points, .. }
            | Self::Moves { points, .. }
            | Self::Below { points, .. } => vec![points],
        }
    }
}

fn test(test: &Test, rows: &[&Row]) -> (Option<bool>, String) {
    match test {
        Test::Equal { left, right }
        | Test::Worse { left, right }
        | Test::NotWorse { left, right } => match (best(left, rows), best(right, rows)) {
            (Some(left), Some(right)) => compare(test, left, right),
            _ => (None, "not in these results".into()),
        },
        Test::Steady { points, along, across, within }
        | Test::Moves { points, along, across, within } => {
            let rows = selected(points, rows);
            let Some((shift, detail)) = shift(&rows, along, across) else {
                return (None, "not in these results".into());
            };
            let steady = matches!(test, Test::Steady { .. });
            (Some((shift <= *within) == steady), detail)
        }
        Test::Below { points, bound } => {
            let rows = selected(points, rows);
            let Some(worst) = rows.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))) else {
                return (None, "not in these results".into());
            };
            let holds = rows.iter().all(|row| mean(row) < *bound && row.spread.diverged == 0);
            (Some(holds), format!("the worst is {}, the bound {bound}", worst.spread.text(4)))
        }
    }
}

/// The mean of a row; infinite if it has diverged altogether.
fn mean(row: &Row) -> f64 {
    row.spread.mean.unwrap_or(f64::INFINITY)
}

fn selected<'a>(selector: &Selector, rows: &[&'a Row]) -> Vec<&'a Row> {
    rows.iter().copied().filter(|row| selector.fits(&row.labels)).collect()
}

/// The selected row with the lowest mean; one that has diverged altogether if there is no other.
fn best<'a>(selector: &Selector, rows: &[&'a Row]) -> Option<&'a Row> {
    let fits = selected(selector, rows).into_iter();
    fits.filter(|row| row.spread.count + row.spread.diverged > 0)
        .min_by(|a, b| mean(a).total_cmp(&mean(b)))
}

fn compare(test: &Test, left: &Row, right: &Row) -> (Option<bool>, String) {
    let (a, b) = (&left.spread, &right.spread);
    let deviation = pooled(a, b);
    let texts = format!("{} against {}", a.text(4), b.text(4));
    let (Some(mean_a), Some(mean_b)) = (a.mean, b.mean) else {
        // One side has no finite run at all.
        let holds = match test {
            Test::Worse { .. } => a.mean.is_none() && b.mean.is_some(),
            Test::NotWorse { .. } => a.mean.is_some() && b.diverged > 0,
            _ => false,
        };
        return (Some(holds), texts);
    };
    let difference = mean_a - mean_b;
    let holds = match test {
        Test::Equal { .. } => difference.abs() <= deviation && a.diverged + b.diverged == 0,
        Test::Worse { .. } => difference > deviation || a.diverged > b.diverged,
        _ => difference <= deviation && a.diverged <= b.diverged,
    };
    (Some(holds), format!("{texts}: {difference:+.4}, pooled deviation {deviation:.4}"))
}

/// By how many choices the best along one axis moves across another, and where it is.
fn shift(rows: &[&Row], along: &str, across: &str) -> Option<(usize, String)> {
    let mut choices: Vec<f64> = Vec::new();
    let mut groups: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
    for row in rows {
        let choice: f64 = row.labels.get(along)?.parse().ok()?;
        if !choices.contains(&choice) {
            choices.push(choice);
        }
        let group = row.labels.get(across)?;
        let points = match groups.iter_mut().find(|(name, _)| name == group) {
            Some((_, points)) => points,
            None => {
                groups.push((group, Vec::new()));
                &mut groups.last_mut()?.1
            }
        };
        // A choice at which any seed diverges is none to be best.
        let sound = row.spread.mean.filter(|_| row.spread.diverged == 0);
        points.extend(sound.map(|mean| (choice, mean)));
    }
    choices.sort_by(f64::total_cmp);
    let mut places = Vec::new();
    let mut words = Vec::new();
    for (name, points) in &groups {
        let (choice, _) = points.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        places.push(choices.iter().position(|other| other == choice)?);
        let edge = [choices.first(), choices.last()].contains(&Some(choice));
        words.push(format!("{name}: {choice}{}", if edge { " (edge)" } else { "" }));
    }
    let shift = places.iter().max()? - places.iter().min()?;
    (groups.len() > 1).then(|| (shift, format!("best {along} by {across}: {}", words.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::statistics::Spread;

    fn row(labels: &[(&str, &str)], values: &[Option<f64>]) -> Row {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Row::of(labels, Spread::of(values))
    }

    fn claim(text: &str) -> Claim {
        toml::from_str(&format!("text = 'x'\n{text}")).expect("a claim")
    }

    fn rows() -> Vec<Row> {
        let some = |values: [f64; 3]| values.map(Some);
        vec![
            row(&[("recipe", "a"), ("norm", "pre")], &some([1.0, 2.0, 3.0])),
            row(&[("recipe", "b"), ("norm", "pre")], &some([1.5, 2.5, 3.5])),
            row(&[("recipe", "c"), ("norm", "pre")], &some([4.0, 5.0, 6.0])),
            row(&[("recipe", "a"), ("norm", "post")], &some([1.0, 2.0, 3.0])),
            row(&[("recipe", "b"), ("norm", "post")], &[None, None, None]),
        ]
    }

    fn summary(text: &str) -> String {
        Verdict::of(&claim(text), &rows()).summary()
    }

    #[test]
    fn equal_is_within_the_pooled_deviation() {
        // Both deviations are 1: a difference of 0.5 is within, one of 3 is not.
        let text = |right: &str| {
            format!("kind = 'equal'\nleft = {{ recipe = 'a' }}\nright = {{ recipe = '{right}' }}")
        };
        let pre = |right| summary(&format!("{}\nover = ['norm']", text(right)));
        assert_eq!(pre("b"), "holds in 1 of 2 cases", "post has diverged");
        assert_eq!(pre("c"), "does not hold");
    }

    #[test]
    fn worse_needs_more_than_the_deviation_or_a_divergence() {
        let text = |left: &str, norm: &str| {
            format!(
                "kind = 'worse'\nleft = {{ recipe = '{left}', norm = '{norm}' }}\n\
                 right = {{ recipe = 'a', norm = '{norm}' }}"
            )
        };
        assert_eq!(summary(&text("b", "pre")), "does not hold");
        assert_eq!(summary(&text("c", "pre")), "holds");
        assert_eq!(summary(&text("b", "post")), "holds");
        assert_eq!(summary(&text("c", "post")), "not covered");
    }

    #[test]
    fn below_is_every_mean_and_no_divergence() {
        let text = |recipe: &str, norm: &str, bound: f64| {
            format!(
                "kind = 'below'\nwhere = {{ recipe = '{recipe}', norm = '{norm}' }}\nbound = {bound}"
            )
        };
        assert_eq!(summary(&text("a", "pre", 2.5)), "holds");
        assert_eq!(summary(&text("a", "pre", 2.0)), "does not hold");
        assert_eq!(summary(&text("b", "post", 100.0)), "does not hold", "a seed has diverged");
        assert_eq!(summary(&text("c", "post", 100.0)), "not covered");
    }

    #[test]
    fn several_selected_points_stand_for_their_best() {
        let text = "kind = 'not-worse'\nleft = { recipe = 'b', norm = 'pre' }\n\
                    right = { recipe = ['a', 'c'], norm = 'pre' }";
        assert_eq!(summary(text), "holds");
        let verdict = Verdict::of(&claim(text), &rows());
        assert!(verdict.findings[0].detail.contains("against 2.0000"), "{verdict:?}");
    }

    #[test]
    fn the_best_rate_may_move_by_a_number_of_choices() {
        let at = |width: &str, rate: &str, value: f64| {
            row(&[("width", width), ("lr", rate)], &[Some(value)])
        };
        let rows = [
            at("64", "1", 3.0),
            at("64", "2", 1.0),
            at("64", "4", 2.0),
            at("256", "1", 0.5),
            at("256", "2", 0.7),
            at("256", "4", 0.9),
        ];
        let text = |kind: &str, within: u32| {
            claim(&format!(
                "kind = '{kind}'\nwhere = {{}}\nalong = 'lr'\nacross = 'width'\nwithin = {within}"
            ))
        };
        assert_eq!(Verdict::of(&text("steady", 1), &rows).summary(), "holds");
        assert_eq!(Verdict::of(&text("steady", 0), &rows).summary(), "does not hold");
        assert_eq!(Verdict::of(&text("moves", 0), &rows).summary(), "holds");
        let detail = &Verdict::of(&text("steady", 1), &rows).findings[0].detail;
        assert!(detail.contains("64: 2") && detail.contains("256: 1 (edge)"), "{detail}");
    }
}
