//! What the terminal shows of a run: a function of the events so far.

use std::collections::VecDeque;
use std::time::Instant;

use onesigma::train::telemetry::{Event, Record};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Wrap};

/// Points of a curve that are kept at most; beyond, neighbours are averaged.
const POINTS: usize = 4096;
/// Messages that are kept.
const MESSAGES: usize = 50;

/// A curve over steps that stays small however long the run is.
#[derive(Debug, Default)]
struct Curve {
    points: Vec<(f64, f64)>,
    /// Steps that a point averages.
    stride: u64,
    /// Sum and number of what the next point averages.
    open: (f64, u64),
}

impl Curve {
    fn push(&mut self, step: u64, value: f32) {
        if !value.is_finite() {
            return;
        }
        self.stride = self.stride.max(1);
        self.open = (self.open.0 + f64::from(value), self.open.1 + 1);
        if self.open.1 >= self.stride {
            self.points.push((step as f64, self.open.0 / self.open.1 as f64));
            self.open = (0.0, 0);
        }
        if self.points.len() >= POINTS {
            self.points = self
                .points
                .chunks(2)
                .map(|pair| {
                    let sum: f64 = pair.iter().map(|point| point.1).sum();
                    (pair[pair.len() - 1].0, sum / pair.len() as f64)
                })
                .collect();
            self.stride *= 2;
        }
    }

    fn last(&self) -> Option<f64> {
        self.points.last().map(|point| point.1)
    }

    /// Means over as many parts as there are columns, so that a line is one and no cloud.
    fn smooth(&self, columns: usize) -> Vec<(f64, f64)> {
        let size = self.points.len().div_ceil(columns.max(1)).max(1);
        let mean = |part: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
            part.iter().map(pick).sum::<f64>() / part.len() as f64
        };
        self.points.chunks(size).map(|part| (mean(part, |p| p.0), mean(part, |p| p.1))).collect()
    }
}

/// The state of the picture.
#[derive(Debug)]
pub struct Dashboard {
    title: String,
    started: Instant,
    first: u64,
    done: u64,
    total: u64,
    tokens_per_s: f64,
    training: Curve,
    validation: Curve,
    rate: Curve,
    norm: Curve,
    speed: Curve,
    sample: Option<(u64, String)>,
    messages: VecDeque<String>,
    is_stopping: bool,
}

impl Dashboard {
    /// A run that has not begun.
    pub fn new(title: String) -> Self {
        Self {
            title,
            started: Instant::now(),
            first: 0,
            done: 0,
            total: 1,
            tokens_per_s: 0.0,
            training: Curve::default(),
            validation: Curve::default(),
            rate: Curve::default(),
            norm: Curve::default(),
            speed: Curve::default(),
            sample: None,
            messages: VecDeque::new(),
            is_stopping: false,
        }
    }

    /// The user has asked it to end.
    pub fn stopping(&mut self) {
        self.is_stopping = true;
        self.say("stopping after these steps; Ctrl-C to stop at once".into());
    }

    fn say(&mut self, message: String) {
        self.messages.push_front(message);
        self.messages.truncate(MESSAGES);
    }

    /// Takes notice of an event.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Started { first_step, total_steps, .. } => {
                (self.first, self.done, self.total) = (*first_step, *first_step, *total_steps);
                self.started = Instant::now();
            }
            Event::Metric(Record::Train { step, loss, rate, grad_norm }) => {
                self.done = step + 1;
                self.training.push(step + 1, *loss);
                self.rate.push(step + 1, *rate);
                if let Some(norm) = grad_norm {
                    self.norm.push(step + 1, *norm);
                }
            }
            Event::Metric(Record::Evaluation { step, loss, accuracy }) => {
                self.validation.push(*step, *loss);
                let accuracy = accuracy.map(|share| format!(", accuracy {:.2} %", 100.0 * share));
                self.say(format!(
                    "step {step}: validation loss {loss:.4}{}",
                    accuracy.unwrap_or_default()
                ));
            }
            Event::Metric(Record::Speed { step, tokens_per_s }) => {
                self.tokens_per_s = *tokens_per_s;
                self.speed.push(*step, *tokens_per_s as f32);
            }
            Event::Metric(Record::Sample { step, text }) => {
                self.sample = Some((*step, text.clone()));
            }
            Event::Saved { step, path } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.say(format!("step {step}: saved {name}"));
            }
            Event::Warning(text) => self.say(format!("warning: {text}")),
            _ => {}
        }
    }

    /// Draws all of it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let rows = [Constraint::Length(3), Constraint::Fill(3), Constraint::Fill(2)];
        let [head, losses, rest] = Layout::vertical(rows).areas(frame.area());
        self.progress(frame, head);
        self.losses(frame, losses);
        let columns = match self.sample {
            Some(_) => [Constraint::Fill(2), Constraint::Fill(2), Constraint::Fill(3)],
            None => [Constraint::Fill(2), Constraint::Fill(2), Constraint::Length(0)],
        };
        let [curves, messages, sample] = Layout::horizontal(columns).areas(rest);
        self.second(frame, curves);
        self.log(frame, messages);
        if let Some((step, text)) = &self.sample {
            let block = Block::bordered().title(format!(" sample, step {step} "));
            // Control characters would move the cursor.
            let plain = |c: char| if c == '\n' || !c.is_control() { c } else { '\u{b7}' };
            let text: String = text.chars().map(plain).collect();
            frame.render_widget(
                Paragraph::new(text).wrap(Wrap { trim: false }).block(block),
                sample,
            );
        }
    }

    fn progress(&self, frame: &mut Frame<'_>, area: Rect) {
        let share = (self.done as f64 / self.total.max(1) as f64).clamp(0.0, 1.0);
        let elapsed = self.started.elapsed().as_secs_f64();
        let taken = self.done - self.first;
        let left = match taken {
            0 => "?".to_owned(),
            _ => time(elapsed / taken as f64 * (self.total - self.done) as f64),
        };
        let label = format!(
            "{}/{} steps  {:.0} tokens/s  {} left",
            self.done, self.total, self.tokens_per_s, left
        );
        let keys = if self.is_stopping { " stopping " } else { " q: save and stop " };
        let block = Block::bordered()
            .title(Line::from(format!(" {} ", self.title)).bold())
            .title(Line::from(keys).right_aligned());
        let gauge = Gauge::default()
            .block(block)
            .gauge_style(Style::new().fg(Color::Blue))
            .ratio(share)
            .label(label);
        frame.render_widget(gauge, area);
    }

    fn losses(&self, frame: &mut Frame<'_>, area: Rect) {
        let figure = |name: &str, curve: &Curve| {
            curve.last().map_or(String::new(), |loss| format!(" {name} {loss:.4} "))
        };
        let title = Line::from(vec![
            " loss:".into(),
            figure("training", &self.training).cyan(),
            figure("validation", &self.validation).yellow(),
        ]);
        let training = self.training.smooth(2 * usize::from(area.width));
        let curves = [(&training, Color::Cyan), (&self.validation.points, Color::Yellow)];
        chart(frame, area, title, &curves, self.done);
    }

    /// The gradient norm where gradients are clipped, or else the learning rate; and the speed.
    fn second(&self, frame: &mut Frame<'_>, area: Rect) {
        let [upper, lower] =
            Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
        let (name, curve) = match self.norm.points.is_empty() {
            true => ("learning rate", &self.rate),
            false => ("gradient norm", &self.norm),
        };
        let title = |name: &str, curve: &Curve| {
            Line::from(format!(" {name} {:.4} ", curve.last().unwrap_or(f64::NAN)))
        };
        let points = curve.smooth(2 * usize::from(area.width));
        chart(frame, upper, title(name, curve), &[(&points, Color::Green)], self.done);
        let points = self.speed.smooth(2 * usize::from(area.width));
        let speed = Line::from(format!(" {:.0} tokens/s ", self.tokens_per_s));
        chart(frame, lower, speed, &[(&points, Color::Magenta)], self.done);
    }

    fn log(&self, frame: &mut Frame<'_>, area: Rect) {
        let lines: Vec<Line<'_>> = self
            .messages
            .iter()
            .map(|message| match message.starts_with("warning") {
                true => Line::from(message.as_str()).red(),
                false => Line::from(message.as_str()),
            })
            .collect();
        let block = Block::bordered().title(" events ");
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

/// Draws curves over the steps so far; the vertical axis holds what is there.
fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    title: Line<'_>,
    curves: &[(&Vec<(f64, f64)>, Color)],
    steps: u64,
) {
    let values = || curves.iter().flat_map(|(points, _)| points.iter().map(|point| point.1));
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = match (low.is_finite(), high > low) {
        (false, _) => (0.0, 1.0),
        (true, false) => (low - 0.5 * low.abs().max(1e-9), low + 0.5 * low.abs().max(1e-9)),
        (true, true) => (low, high),
    };
    let sets = curves.iter().map(|(points, colour)| {
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(*colour))
            .data(points)
    });
    let last = steps.max(1) as f64;
    let x = Axis::default()
        .bounds([0.0, last])
        .labels(["0".to_owned(), format!("{steps}")])
        .style(Style::new().fg(Color::DarkGray));
    let y = Axis::default()
        .bounds([low, high])
        .labels([short(low), short(high)])
        .style(Style::new().fg(Color::DarkGray));
    let chart =
        Chart::new(sets.collect()).block(Block::bordered().title(title)).x_axis(x).y_axis(y);
    frame.render_widget(chart, area);
}

/// A number in few characters.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        1000.0.. => format!("{value:.0}"),
        0.01.. => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

/// A time in two units.
fn time(seconds: f64) -> String {
    let all = seconds.clamp(0.0, 1e9) as u64;
    match (all / 3600, all / 60 % 60, all % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn picture(dashboard: &Dashboard, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| dashboard.draw(frame)).expect("a picture");
        let buffer = terminal.backend().buffer().clone();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(row).collect()
    }

    fn example(steps: u64) -> Dashboard {
        let mut dashboard = Dashboard::new("unit-fp8 on cpu".into());
        dashboard.note(&Event::Started { first_step: 0, total_steps: 200, tokens_per_step: 64 });
        for step in 0..steps {
            let loss = 5.0 / (1.0 + step as f32 / 20.0);
            let record = Record::Train { step, loss, rate: 0.5, grad_norm: Some(0.25) };
            dashboard.note(&Event::Metric(record));
        }
        let (step, accuracy) = (steps, None);
        dashboard.note(&Event::Metric(Record::Evaluation { step, loss: 1.25, accuracy }));
        dashboard.note(&Event::Metric(Record::Speed { step, tokens_per_s: 12345.0 }));
        dashboard
    }

    #[test]
    fn the_picture_says_where_the_run_is_and_draws_its_loss() {
        let rows = picture(&example(100), 110, 32);
        let all = rows.join("\n");
        for word in [
            "unit-fp8 on cpu",
            "100/200 steps",
            "12345 tokens/s",
            "training 0.8403",
            "validation 1.2500",
            "gradient norm 0.2500",
            "step 100: validation loss",
            "q: save and stop",
        ] {
            assert!(all.contains(word), "no `{word}` in\n{all}");
        }
        // The curve falls from the upper left to the lower right.
        let is_dot = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
        let columns = |row: &String| -> Vec<usize> {
            row.chars().enumerate().filter(|(_, c)| is_dot(*c)).map(|(x, _)| x).collect()
        };
        let curve: Vec<Vec<usize>> = rows[4..18].iter().map(columns).collect();
        let with = curve.iter().filter(|columns| !columns.is_empty()).count();
        assert!(with > 8, "{all}");
        let first = curve.iter().find(|columns| !columns.is_empty()).expect("a curve");
        let last = curve.iter().rev().find(|columns| !columns.is_empty()).expect("a curve");
        assert!(first[0] < 15 && *last.last().expect("dots") > 100, "{all}");
    }

    #[test]
    fn a_sample_is_shown_without_its_control_characters() {
        let mut dashboard = example(10);
        let text = "Once\u{1b}[2J upon\na time".to_owned();
        dashboard.note(&Event::Metric(Record::Sample { step: 10, text }));
        dashboard.stopping();
        let all = picture(&dashboard, 110, 32).join("\n");
        for word in ["sample, step 10", "Once\u{b7}[2J upon", "a time", "stopping"] {
            assert!(all.contains(word), "no `{word}` in\n{all}");
        }
    }

    #[test]
    fn any_size_and_any_run_can_be_drawn() {
        let mut diverged = example(3);
        let record = Record::Train { step: 3, loss: f32::NAN, rate: 0.5, grad_norm: None };
        diverged.note(&Event::Metric(record));
        for (width, height) in [(1, 1), (10, 4), (40, 12), (300, 100)] {
            picture(&diverged, width, height);
            picture(&Dashboard::new("empty".into()), width, height);
        }
    }

    #[test]
    fn long_curves_stay_small_and_keep_their_mean() {
        let mut curve = Curve::default();
        for step in 0..100_000 {
            curve.push(step, if step % 2 == 0 { 1.0 } else { 3.0 });
        }
        assert!(curve.points.len() < POINTS);
        assert_eq!(curve.last(), Some(2.0));
        assert!(curve.points.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(curve.smooth(50).len() <= 50);
    }
}
