//! The search for a setting, usually the learning rate, before the grid is run.
//!
//! From a first guess the value is multiplied by the factor while the metric improves, and divided
//! if the first step did not improve it: the result is better than both of its neighbours. Every
//! group of points gets the same search, with seeds that the grid does not use.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use toml::Value;

use super::config::{Experiment, Labels, Mode, Tune};
use super::grid::{Point, Run, Source, Stage};
use super::runner::Runner;
use super::settings::{overlay, set_path};
use super::workers::parallel;

/// Values that a search tries at most.
const MOST: usize = 16;

/// One value of a search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// The value of the setting.
    pub value: f64,
    /// The metric, mean over the search's seeds; none if one of them has diverged.
    pub metric: Option<f64>,
}

/// The outcome of one search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tuned {
    /// The points that it is for.
    pub labels: Labels,
    /// The best value.
    pub best: f64,
    /// Everything that was tried, by value.
    pub tried: Vec<Tried>,
}

/// Searches for every group of points; nothing if the experiment has no search. Groups that lack
/// runs are left out where nothing may be run.
pub fn rates(
    experiment: &Experiment,
    mode: Mode,
    points: &[Point],
    source: Option<&Source>,
    runner: &Runner<'_>,
    jobs: usize,
) -> Result<Vec<Tuned>> {
    let Some(tune) = &experiment.tune else { return Ok(Vec::new()) };
    let searched: Vec<&Point> =
        points.iter().filter(|point| tune.points.fits(&point.labels)).collect();
    ensure!(!searched.is_empty(), "tune: no point of the {} size is searched", mode.name());
    let one = |point: &Point| -> Result<Option<Tuned>> {
        let found = search(start(tune, point)?, tune.factor, |value| {
            measure(experiment, tune, point, value, source, runner)
        });
        let Some(tried) = found? else { return Ok(None) };
        let labels = group(tune, &point.labels)?;
        let best = best(&tried).with_context(|| format!("every value diverges for {labels:?}"))?;
        Ok(Some(Tuned { labels, best, tried }))
    };
    Ok(parallel(jobs, searched, one)?.into_iter().flatten().collect())
}

/// Gives every point the value that was found for it; drops those without one.
pub fn apply(experiment: &Experiment, tuned: &[Tuned], points: &mut Vec<Point>) -> Result<()> {
    let Some(tune) = &experiment.tune else { return Ok(()) };
    let mut left = Vec::new();
    for mut point in points.drain(..) {
        let own = group(tune, &point.labels)?;
        if let Some(found) = tuned.iter().find(|found| found.labels == own) {
            set_key(tune, &mut point, found.best)?;
            left.push(point);
        }
    }
    *points = left;
    Ok(())
}

fn set_key(tune: &Tune, point: &mut Point, value: f64) -> Result<()> {
    let is_set = set_path(&mut point.settings, &tune.key, Value::Float(value));
    ensure!(is_set, "tune: `{}` leads through no tables", tune.key);
    Ok(())
}

fn start(tune: &Tune, point: &Point) -> Result<f64> {
    let start = tune.start.iter().find(|start| start.points.fits(&point.labels));
    let start = start.with_context(|| format!("tune: no start for {:?}", point.labels))?;
    Ok(start.value)
}

fn group(tune: &Tune, labels: &Labels) -> Result<Labels> {
    let own = |name: &String| {
        let label = labels.get(name).with_context(|| format!("{labels:?} has no `{name}`"))?;
        Ok((name.clone(), label.clone()))
    };
    tune.by.iter().map(own).collect()
}

/// The mean metric of a value over the search's seeds, `None` inside if it diverges; the outer
/// `None` where runs are missing.
fn measure(
    experiment: &Experiment,
    tune: &Tune,
    point: &Point,
    value: f64,
    source: Option<&Source>,
    runner: &Runner<'_>,
) -> Result<Option<Option<f64>>> {
    let mut point = point.clone();
    overlay(&mut point.settings, &tune.settings);
    set_key(tune, &mut point, value)?;
    let mut sum = Some(0.0);
    for &seed in &tune.seeds {
        let run = Run::new(&experiment.columns(), &point, seed, Stage::Tune, source)?;
        let Some(result) = runner.result(&run, experiment)? else { return Ok(None) };
        sum = sum.zip(result.value).map(|(sum, value)| sum + value);
    }
    Ok(Some(sum.map(|sum| sum / tune.seeds.len() as f64)))
}

/// Walks from `start` up, or else down, while the metric improves; from a start that diverges only
/// down. `None` if `measure` says that a run is missing.
fn search(
    start: f64,
    factor: f64,
    mut measure: impl FnMut(f64) -> Result<Option<Option<f64>>>,
) -> Result<Option<Vec<Tried>>> {
    let Some(first) = measure(start)? else { return Ok(None) };
    let mut tried = vec![Tried { value: start, metric: first }];
    let mut lowest = first.unwrap_or(f64::INFINITY);
    for step in [factor, factor.recip()] {
        if step > 1.0 && first.is_none() {
            continue;
        }
        // Powers rather than products, so that the same values come up from any start.
        for power in 1.. {
            let value = start * step.powi(power);
            let Some(metric) = measure(value)? else { return Ok(None) };
            tried.push(Tried { value, metric });
            let better = metric.is_some_and(|metric| metric < lowest);
            lowest = metric.unwrap_or(f64::INFINITY).min(lowest);
            if lowest.is_finite() && !better || tried.len() >= MOST {
                break;
            }
        }
        if step > 1.0 && tried.len() > 2 {
            break;
        }
    }
    tried.sort_by(|a, b| a.value.total_cmp(&b.value));
    Ok(Some(tried))
}

/// The value with the best metric.
fn best(tried: &[Tried]) -> Option<f64> {
    let finite = tried.iter().filter_map(|one| Some((one.value, one.metric?)));
    finite.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(start: f64, metric: impl Fn(f64) -> Option<f64>) -> (Option<f64>, Vec<f64>) {
        let tried = search(start, 2.0, |value| Ok(Some(metric(value))));
        let tried = tried.expect("no error").expect("no run is missing");
        (best(&tried), tried.iter().map(|one| one.value).collect())
    }

    #[test]
    fn the_best_value_is_better_than_both_neighbours() {
        let bowl = |value: f64| Some((value.log2() - 3.0).powi(2));
        assert_eq!(find(1.0, bowl), (Some(8.0), vec![1.0, 2.0, 4.0, 8.0, 16.0]));
        assert_eq!(find(32.0, bowl), (Some(8.0), vec![4.0, 8.0, 16.0, 32.0, 64.0]));
        assert_eq!(find(8.0, bowl), (Some(8.0), vec![4.0, 8.0, 16.0]));
    }

    #[test]
    fn a_start_that_diverges_is_left_downwards() {
        let cliff = |value: f64| (value <= 2.0).then_some(-value);
        assert_eq!(find(16.0, cliff), (Some(2.0), vec![1.0, 2.0, 4.0, 8.0, 16.0]));
        assert_eq!(find(2.0, cliff), (Some(2.0), vec![1.0, 2.0, 4.0]));
        let (none, tried) = find(1.0, |_| None);
        assert_eq!((none, tried.len()), (None, MOST));
    }

    #[test]
    fn a_missing_run_ends_the_search() {
        let mut left = 2;
        let found = search(1.0, 2.0, |value| {
            left -= 1;
            Ok((left >= 0).then_some(Some(value)))
        });
        assert_eq!(found.expect("no error"), None);
    }
}
